//! Keeper, supervisor and workers as real processes, with a small script in the place of Python. The test process plays
//! the server's parent and its children. Everything started here is ended again, also when a test fails.

use mod_wsgi_scoreboard::{Shape, Table};
use mod_wsgi_supervisor::channel::Channel;
use mod_wsgi_wire::control::{
    Config, Deadlines, FromSupervisor, Group, Preload, Recycle, RefusedReason, Secret, ToSupervisor,
};
use mod_wsgi_wire::frame::Level;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getegid, geteuid};
use serde_json::Value;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(15);

struct House {
    dir: PathBuf,
    host: PathBuf,
    master: Option<Channel>,
    secret: u8,
}

/// Asks until the answer is `Some`, within the patience.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(x) = ask() {
            return x;
        }
        assert!(Instant::now() < end, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_running(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat[stat.rfind(')').unwrap()..].starts_with(") Z")
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 1..].split_ascii_whitespace().nth(1)?.parse().ok()
}

impl House {
    fn new(name: &str) -> House {
        let dir = std::env::temp_dir().join(format!("mwr-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("worker")).unwrap();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(dir.join("worker/bootstrap.py"), "").unwrap();
        std::fs::write(dir.join("app.py"), "application = 1\n").unwrap();
        std::fs::write(dir.join("error.log"), "").unwrap();
        // A copy: an executable that is open for writing elsewhere cannot be run.
        std::fs::write(dir.join("python"), include_str!("support/fake_python")).unwrap();
        std::fs::set_permissions(dir.join("python"), PermissionsExt::from_mode(0o755)).unwrap();
        let exe = std::env::current_exe().unwrap();
        let host = exe.parent().unwrap().parent().unwrap().join("examples/host");
        House { dir, host, master: None, secret: 1 }
    }

    fn log_file(&self) -> File {
        File::options().append(true).open(self.dir.join("error.log")).unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("error.log")).unwrap()
    }

    fn start(&self) -> i32 {
        let mut command = Command::new(&self.host);
        command.arg("start-keeper").arg("--run-directory").arg(self.dir.join("run"));
        command.args(["--server-uid", &geteuid().to_string(), "--server-gid", &getegid().to_string()]);
        command.env("MOD_WSGI_RS_WORKER_DIR", self.dir.join("worker")).process_group(0);
        let status = command.stdin(Stdio::null()).stderr(self.log_file()).status().unwrap();
        status.code().unwrap()
    }

    fn connect(&self) -> Channel {
        Channel::new(UnixStream::connect(self.dir.join("run/ctl.sock")).unwrap()).unwrap()
    }

    fn group(&self) -> Group {
        let (uid, gid) = if geteuid().is_root() { (65534, 65534) } else { (geteuid().as_raw(), getegid().as_raw()) };
        Group {
            name: "blog".into(),
            processes: 1,
            threads: 2,
            queue_limit: 4,
            multiprocess: false,
            uid,
            gid,
            groups: vec![],
            user_name: "nobody".into(),
            user_home: "/".into(),
            python: self.dir.join("python").to_str().unwrap().into(),
            python_path: vec![],
            home: self.dir.to_str().unwrap().into(),
            umask: None,
            lang: String::new(),
            locale: String::new(),
            display_name: String::new(),
            env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
            no_new_privileges: true,
            startup_timeout: 10.0,
            graceful_timeout: 2.0,
            shutdown_timeout: 2.0,
            application_idle: 600.0,
            maximum_application_groups: 2,
            recycle: Recycle::default(),
            deadlines: Deadlines::default(),
            strict_reloading: false,
            minimum_processes: 0,
            reload_on_changes: false,
            reload_extra_files: Vec::new(),
        }
    }

    fn secret(&self) -> Secret {
        Secret::from_bytes(&[self.secret; 16])
    }

    fn config(&mut self, groups: Vec<Group>) -> Config {
        self.secret += 1;
        let script = self.dir.join("app.py").to_str().unwrap().to_owned();
        let preload = Preload { group: "blog".into(), application: "".into(), script, callable: "application".into() };
        Config {
            secret: self.secret(),
            server_uid: geteuid().as_raw(),
            server_gid: getegid().as_raw(),
            roll_all: true,
            groups,
            preload: vec![preload],
            log_level: Level::Info,
        }
    }

    fn configure(&mut self, groups: Vec<Group>) {
        let message =
            ToSupervisor::Configure { build: "test".into(), config: Box::new(self.config(groups)), moves: false };
        let mut channel = self.connect();
        channel.send(&message, &[self.log_file().as_fd()]).unwrap();
        assert!(matches!(receive(&mut channel), Some(FromSupervisor::Accepted)));
        self.master = Some(channel);
    }

    fn ask(&self, message: &ToSupervisor) -> (Option<FromSupervisor>, Channel) {
        let mut channel = self.connect();
        channel.send(message, &[]).unwrap();
        (receive(&mut channel), channel)
    }

    /// A supervisor that ends may take a question with it: then its successor is asked.
    fn status(&self) -> Value {
        until("a status", || match self.ask(&ToSupervisor::Status).0 {
            Some(FromSupervisor::Status { status }) => Some(status),
            None => None,
            other => panic!("{other:?}"),
        })
    }

    /// Workers of all pools in that state: (pid, slot, former).
    fn workers(&self, state: &str) -> Vec<(i32, u64, bool)> {
        let status = self.status();
        let pools = status["pools"].as_array().unwrap();
        let all = pools.iter().flat_map(|p| p["workers"].as_array().unwrap());
        let fits = all.filter(|w| w["state"] == state);
        fits.map(|w| (w["pid"].as_i64().unwrap() as i32, w["slot"].as_u64().unwrap(), w["former"] == true)).collect()
    }

    fn one_ready(&self, but: i32) -> i32 {
        until("one ready worker", || match self.workers("ready")[..] {
            [(pid, _, false)] if pid != but => Some(pid),
            _ => None,
        })
    }

    fn table(&self, application: &str) -> Result<(Table, Secret, OwnedFd), RefusedReason> {
        let (secret, group) = (self.secret(), "blog".to_owned());
        let (answer, mut channel) = self.ask(&ToSupervisor::Table { secret, group, application: application.into() });
        match answer {
            Some(FromSupervisor::Table { token, slots, threads, rows }) => {
                let (memfd, dir) = (channel.take_fd().unwrap(), channel.take_fd().unwrap());
                Ok((Table::open(memfd, Shape { slots, threads, rows }).unwrap(), token, dir))
            }
            Some(FromSupervisor::Refused { reason, .. }) => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    /// Stops as a server's parent does, and waits until supervisor and keeper have gone.
    fn stop(&mut self) {
        let supervisor = self.status()["pid"].as_i64().unwrap() as i32;
        let keeper = parent_of(supervisor).unwrap();
        let mut pids: Vec<i32> = self.workers("ready").iter().map(|w| w.0).collect();
        pids.extend([supervisor, keeper]);
        let (answer, _channel) = self.ask(&ToSupervisor::Stop);
        assert!(matches!(answer, Some(FromSupervisor::Stopped)), "{answer:?}");
        until("everything has ended", || pids.iter().all(|p| !is_running(*p)).then_some(()));
        assert!(!self.dir.join("run/ctl.sock").exists());
        assert_eq!(std::fs::read_dir(self.dir.join("run/w")).unwrap().count(), 0);
        self.master = None;
    }
}

fn receive(channel: &mut Channel) -> Option<FromSupervisor> {
    let mut answer = None;
    until("an answer", || {
        channel.fill().unwrap();
        match channel.message() {
            Ok(Some(m)) => {
                answer = Some(m);
                Some(())
            }
            Ok(None) => None,
            Err(_) => Some(()),
        }
    });
    answer
}

impl Drop for House {
    fn drop(&mut self) {
        let ctl = self.dir.join("run/ctl.sock");
        if ctl.exists() && std::thread::panicking() {
            eprintln!("--- error log\n{}", self.log());
            if let Some(FromSupervisor::Status { status }) = self.ask(&ToSupervisor::Status).0 {
                let supervisor = status["pid"].as_i64().unwrap() as i32;
                eprintln!("--- status\n{status:#}");
                let keeper = parent_of(supervisor).unwrap_or(0);
                let _ = kill(Pid::from_raw(supervisor), Signal::SIGTERM);
                let end = Instant::now() + PATIENCE;
                while keeper > 1 && is_running(keeper) && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn a_worker_starts_serves_its_table_and_stops_with_the_server() {
    let mut h = House::new("start");
    assert_eq!(h.start(), 0);
    assert_eq!(h.start(), 0, "a second start finds the keeper");
    let group = h.group();
    h.configure(vec![group]);
    let pid = h.one_ready(0);
    let (table, token, _dir) = h.table("").unwrap();
    assert_eq!(table.slot(0).1, mod_wsgi_scoreboard::SlotState::Ready);
    assert_eq!((table.pid(0) as i32, table.shape().threads), (pid, 2));
    assert!(token.bytes().is_some());
    let log = h.log();
    assert!(log.contains(&format!("[wsgi:warn] [pid {pid}] started\\x1b in {}", h.dir.display())), "{log}");
    // Nothing else is inherited: 0 to 2, control, table, listener, journal, plan, worker files, bootstrap; no environment.
    let of = |what: &str| format!("/proc/{pid}/{what}");
    assert_eq!(std::fs::read_dir(of("fd")).unwrap().count(), 10);
    let environ = std::fs::read_to_string(of("environ")).unwrap();
    let names: Vec<&str> = environ.split_terminator('\0').map(|e| e.split('=').next().unwrap()).collect();
    assert_eq!(names, ["MOD_WSGI_RS_PLAN", "PATH"]);
    let status = std::fs::read_to_string(of("status")).unwrap();
    let user = format!("Uid:\t{0}\t{0}\t{0}\t{0}", h.group().uid);
    assert!(status.contains(&user) && status.contains("SigBlk:\t0000000000000000"), "{status}");
    h.stop();
}

#[test]
fn a_killed_worker_is_replaced_at_once() {
    let mut h = House::new("kill");
    h.start();
    let group = h.group();
    h.configure(vec![group]);
    let (table, ..) = {
        h.one_ready(0);
        h.table("").unwrap()
    };
    let old = h.one_ready(0);
    kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
    let new = h.one_ready(old);
    let slots: Vec<_> = (0..table.shape().slots).filter(|s| table.pid(*s) as i32 == new).collect();
    assert_eq!(slots.len(), 1);
    let log = h.log();
    assert!(
        log.contains(&format!("MWR0306: worker {old} of group \"blog\" ended unexpectedly with signal 9")),
        "{log}"
    );
    h.stop();
}

#[test]
fn a_restart_of_the_server_rolls_new_before_old_on_the_same_table() {
    let mut h = House::new("roll");
    h.start();
    let mut group = h.group();
    group.processes = 2;
    h.configure(vec![group.clone()]);
    until("two ready", || (h.workers("ready").len() == 2).then_some(()));
    let old: Vec<i32> = h.workers("ready").iter().map(|w| w.0).collect();
    let (table, token, _dir) = h.table("").unwrap();
    let former = h.master.take();
    h.configure(vec![group]);
    drop(former);
    let mut least = usize::MAX;
    until("two new ones", || {
        let slots = 0..table.shape().slots;
        least = least.min(slots.filter(|s| table.slot(*s).1 == mod_wsgi_scoreboard::SlotState::Ready).count());
        let ready = h.workers("ready");
        (ready.len() == 2 && ready.iter().all(|w| !old.contains(&w.0))).then_some(())
    });
    assert!(least >= 2, "never fewer than before: {least}");
    let (again, same, _dir) = h.table("").unwrap();
    assert!(same == token && again.pid(0) == table.pid(0));
    until("old ones have gone", || old.iter().all(|p| !is_running(*p)).then_some(()));
    h.stop();
}

#[test]
fn a_new_supervisor_keeps_the_table_and_replaces_the_workers() {
    let mut h = House::new("crash");
    h.start();
    let group = h.group();
    h.configure(vec![group]);
    let old = h.one_ready(0);
    let (table, token, _dir) = h.table("").unwrap();
    let register = ToSupervisor::Register { secret: h.secret(), client: None };
    let (answer, connection) = h.ask(&register);
    assert!(matches!(answer, Some(FromSupervisor::Registered { client: 1 })), "{answer:?}");
    drop(connection);
    let supervisor = h.status()["pid"].as_i64().unwrap() as i32;
    kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
    let new = h.one_ready(old);
    assert_ne!(h.status()["pid"].as_i64().unwrap() as i32, supervisor);
    let (again, same, _dir) = h.table("").unwrap();
    assert!(same == token && again.slot(0) == table.slot(0));
    assert!((0..table.shape().slots).any(|s| table.pid(s) as i32 == new));
    let (answer, _again) = h.ask(&ToSupervisor::Register { secret: h.secret(), client: Some(1) });
    assert!(matches!(answer, Some(FromSupervisor::Registered { client: 1 })), "{answer:?}");
    let (answer, _other) = h.ask(&register);
    assert!(matches!(answer, Some(FromSupervisor::Registered { client: 2.. })), "{answer:?}");
    until("the old worker has gone", || (!is_running(old)).then_some(()));
    assert!(h.log().contains("MWR0301: the supervisor ended with signal 9 (SIGKILL)"));
    h.stop();
}

#[test]
fn strangers_and_too_many_application_groups_are_refused() {
    let mut h = House::new("refuse");
    h.start();
    let group = h.group();
    h.configure(vec![group]);
    let table = |secret, group: &str| ToSupervisor::Table { secret, group: group.into(), application: "".into() };
    let refused = |m| match h.ask(&m).0 {
        Some(FromSupervisor::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let wrong = Secret::from_bytes(&[99; 16]);
    assert_eq!(refused(table(wrong.clone(), "blog")), RefusedReason::Secret);
    assert_eq!(refused(ToSupervisor::Register { secret: wrong, client: None }), RefusedReason::Secret);
    assert_eq!(refused(table(h.secret(), "shop")), RefusedReason::Group);
    h.table("a").unwrap();
    h.table("b").unwrap();
    assert_eq!(h.table("c").err(), Some(RefusedReason::ApplicationGroups));
    assert_eq!(h.table("c").err(), Some(RefusedReason::ApplicationGroups));
    h.table("a").unwrap();
    let log = h.log();
    assert_eq!(log.matches("MWR0316").count(), 1, "{log}");
    assert!(log.contains("maximum-application-groups=2") && log.contains("%{GLOBAL}"));
    h.stop();
}

#[test]
fn a_worker_that_cannot_start_fails_the_pool_with_a_reason() {
    let mut h = House::new("fail");
    h.start();
    let mut group = h.group();
    group.env.insert("FAKE".into(), "broken".into());
    h.configure(vec![group.clone()]);
    let (table, ..) = h.table("").unwrap();
    until("failed", || (table.pool() == mod_wsgi_scoreboard::PoolState::Failed).then_some(()));
    until("a reason", || {
        h.log().contains("it ended with exit code 3; it said: Traceback: no module named encodings").then_some(())
    });
    // A mended configuration starts at once.
    group.env.clear();
    group.env.insert("PATH".into(), "/usr/bin:/bin".into());
    h.configure(vec![group.clone()]);
    h.one_ready(0);
    until("active", || (table.pool() == mod_wsgi_scoreboard::PoolState::Active).then_some(()));
    group.python = h.dir.join("missing").to_str().unwrap().into();
    let old = h.one_ready(0);
    h.configure(vec![group]);
    until("an honest message", || h.log().contains("cannot execute").then_some(()));
    assert_eq!(h.one_ready(0), old, "the old worker goes on");
    h.stop();
}

#[test]
fn a_touched_script_rolls_unless_it_is_broken() {
    let mut h = House::new("touch");
    h.start();
    let group = h.group();
    h.configure(vec![group]);
    let first = h.one_ready(0);
    std::fs::write(h.dir.join("app.py"), "raise\n").unwrap();
    until("the reload is refused", || h.log().contains("MWR0308").then_some(()));
    assert_eq!(h.one_ready(0), first);
    std::fs::write(h.dir.join("app.py"), "application = 2\n").unwrap();
    h.one_ready(first);
    assert_eq!(h.log().matches("MWR0308").count(), 1, "{}", h.log());
    h.stop();
}

#[test]
fn a_changed_shape_is_a_new_table_and_the_old_one_is_retired() {
    let mut h = House::new("shape");
    h.start();
    let mut group = h.group();
    h.configure(vec![group.clone()]);
    let first = h.one_ready(0);
    let (old, token, _dir) = h.table("").unwrap();
    group.threads = 5;
    h.configure(vec![group]);
    let second = until("the old table retires", || {
        (old.pool() == mod_wsgi_scoreboard::PoolState::Retired).then(|| h.table("").unwrap())
    });
    assert!(second.1 != token && second.0.shape().threads == 5);
    h.one_ready(first);
    until("the old worker has gone", || (!is_running(first)).then_some(()));
    h.configure(vec![]);
    until("no worker is left", || h.workers("ready").is_empty().then_some(()));
    h.stop();
}

#[test]
fn idle_application_groups_end_and_wake() {
    let mut h = House::new("idle");
    h.start();
    let mut group = h.group();
    group.application_idle = 0.3;
    h.configure(vec![group]);
    let (table, ..) = h.table("x").unwrap();
    until("ready", || (table.slot(0).1 == mod_wsgi_scoreboard::SlotState::Ready).then_some(()));
    until("idle", || (table.pool() == mod_wsgi_scoreboard::PoolState::Idle).then_some(()));
    until("ended", || (h.workers("ready").len() == 1).then_some(()));
    table.set_wanted();
    until("awake", || (h.workers("ready").len() == 2).then_some(()));
    h.stop();
}

#[test]
fn a_killed_keeper_leaves_the_workers_and_is_replaced_at_the_next_start() {
    let mut h = House::new("keeper");
    h.start();
    let group = h.group();
    h.configure(vec![group.clone()]);
    let first = h.one_ready(0);
    let supervisor = h.status()["pid"].as_i64().unwrap() as i32;
    kill(Pid::from_raw(parent_of(supervisor).unwrap()), Signal::SIGKILL).unwrap();
    until("the loss is logged", || h.log().contains("MWR0304").then_some(()));
    assert!(is_running(first) && h.one_ready(0) == first);
    assert_eq!(h.start(), 0);
    let mut former = h.master.take().unwrap();
    h.configure(vec![group]);
    assert_ne!(h.status()["pid"].as_i64().unwrap() as i32, supervisor);
    h.one_ready(first);
    assert!(is_running(first), "the server's old processes still have it");
    former.send(&ToSupervisor::Stop, &[]).unwrap();
    assert!(matches!(receive(&mut former), Some(FromSupervisor::Stopped)));
    until("the old ones have gone", || (!is_running(first) && !is_running(supervisor)).then_some(()));
    h.stop();
}

#[test]
fn sigterm_to_the_keeper_ends_everything() {
    let mut h = House::new("term");
    h.start();
    let group = h.group();
    h.configure(vec![group]);
    let worker = h.one_ready(0);
    let supervisor = h.status()["pid"].as_i64().unwrap() as i32;
    let keeper = parent_of(supervisor).unwrap();
    kill(Pid::from_raw(keeper), Signal::SIGTERM).unwrap();
    until("all have gone", || [worker, supervisor, keeper].iter().all(|p| !is_running(*p)).then_some(()));
    assert!(!h.dir.join("run/ctl.sock").exists());
}

#[test]
fn a_run_directory_of_others_is_refused_with_one_line() {
    let h = House::new("owner");
    std::fs::create_dir(h.dir.join("run")).unwrap();
    std::fs::set_permissions(h.dir.join("run"), PermissionsExt::from_mode(0o777)).unwrap();
    assert_eq!(h.start(), 1);
    let log = h.log();
    assert!(log.lines().count() == 1 && log.contains("MWR0303") && log.contains("0711"), "{log}");
}

#[test]
fn a_worker_that_does_not_end_is_killed_in_time() {
    let mut h = House::new("stubborn");
    h.start();
    let mut group = h.group();
    group.env.insert("FAKE".into(), "stubborn".into());
    group.shutdown_timeout = 0.2;
    h.configure(vec![group]);
    h.one_ready(0);
    let begin = Instant::now();
    h.stop();
    assert!(begin.elapsed() < Duration::from_secs(4));
    assert!(h.log().contains("MWR0309"));
}

/// The server is a process of its own here, which is killed.
#[test]
fn all_ends_when_the_server_is_killed() {
    let mut h = House::new("orphan");
    h.start();
    let group = h.group();
    // A process that connects for us and then only waits: its pid is what the supervisor watches.
    let program = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
                   s.sendall(sys.stdin.buffer.read()); print(s.recv(99), flush=True); time.sleep(60)";
    let mut server = Command::new("/usr/bin/python3");
    server.args(["-c", program]).arg(h.dir.join("run/ctl.sock")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = server.spawn().unwrap();
    let message =
        ToSupervisor::Configure { build: "test".into(), config: Box::new(h.config(vec![group])), moves: false };
    let bytes = mod_wsgi_wire::control::encode(&message).unwrap();
    std::io::Write::write_all(&mut server.stdin.take().unwrap(), &bytes).unwrap();
    let worker = h.one_ready(0);
    let supervisor = h.status()["pid"].as_i64().unwrap() as i32;
    let pids = [worker, supervisor, parent_of(supervisor).unwrap()];
    server.kill().unwrap();
    server.wait().unwrap();
    until("all have gone", || pids.iter().all(|p| !is_running(*p)).then_some(()));
}

#[test]
fn a_running_request_keeps_its_worker_until_it_is_done() {
    let mut h = House::new("drain");
    h.start();
    let mut group = h.group();
    group.graceful_timeout = 30.0;
    h.configure(vec![group.clone()]);
    let old = h.one_ready(0);
    let (table, ..) = h.table("").unwrap();
    let lease = table.take(0, 0, 1).unwrap();
    assert!(table.claim(&lease));
    h.configure(vec![group]);
    h.one_ready(old);
    until("draining", || (h.workers("draining").first().map(|w| w.0) == Some(old)).then_some(()));
    assert!(table.take(0, 1, 1).is_none(), "no new request for it");
    assert!(is_running(old) && table.finish(&lease));
    until("the old worker has gone", || (!is_running(old)).then_some(()));
    h.stop();
}

#[test]
fn application_groups_grow_with_waiting_requests_and_rows_of_the_gone_are_freed() {
    let mut h = House::new("grow");
    h.start();
    let mut group = h.group();
    group.processes = 2;
    h.configure(vec![group]);
    let (table, ..) = h.table("x").unwrap();
    until("one ready", || (table.slot(0).1 == mod_wsgi_scoreboard::SlotState::Ready).then_some(()));
    let (answer, connection) = h.ask(&ToSupervisor::Register { secret: h.secret(), client: None });
    let Some(FromSupervisor::Registered { client }) = answer else { panic!("{answer:?}") };
    let leases: Vec<_> = (0..3).map(|i| table.take(0, i, client).unwrap()).collect();
    assert!(table.claim(&leases[0]) && table.claim(&leases[1]));
    until("it has grown", || (table.slot(1).1 == mod_wsgi_scoreboard::SlotState::Ready).then_some(()));
    assert!(table.is_sent(&leases[2]));
    drop(connection);
    until("the waiting row is freed", || (!table.is_sent(&leases[2])).then_some(()));
    assert!(table.is_running(&leases[0]), "a running one ends with its request");
    h.stop();
}

#[test]
fn an_upgraded_program_takes_over_at_the_next_configuration() {
    let mut h = House::new("upgrade");
    let copy = |h: &House| {
        let new = h.dir.join("host.new");
        std::fs::copy(&h.host, &new).unwrap();
        new
    };
    let (first, second) = (copy(&h), h.dir.join("host"));
    std::fs::rename(first, &second).unwrap();
    h.host = second;
    h.start();
    let group = h.group();
    h.configure(vec![group.clone()]);
    let worker = h.one_ready(0);
    let (_table, token, _dir) = h.table("").unwrap();
    let supervisor = h.status()["pid"].as_i64().unwrap() as i32;
    std::fs::rename(copy(&h), &h.host).unwrap();
    h.configure(vec![group]);
    until("another supervisor", || (h.status()["pid"].as_i64() != Some(supervisor as i64)).then_some(()));
    h.one_ready(worker);
    assert!(h.table("").unwrap().1 == token);
    assert!(!h.log().contains("MWR0301"), "{}", h.log());
    h.stop();
}
