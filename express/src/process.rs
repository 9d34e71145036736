//! Runs the private web server as a child in its own process group: signals are passed on, output is passed through, and
//! everything ends when it ends. The main thread waits for events; helper threads feed it.

use crate::ctl;
use crate::error::Error;
use crate::import_check::Outcome;
use crate::notify::Manager;
use crate::plan::Plan;
use crate::render::{self, GRACEFUL_SHUTDOWN, Places};
use crate::root::ServerRoot;
use crate::server::{Kind, Manner};
use crate::spool::Spool;
use crate::{access, import_check, listen};
use mod_wsgi_wire::control as ctl_protocol;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How long the application may take to its first answer before we say so.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// After the wish to stop, the server and its workers get the graceful time and this, then SIGTERM, then SIGKILL.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// How much of the end of a log is shown.
const TAIL: usize = 8 * 1024;

/// What helper threads tell the main thread.
enum Event {
    Signal(i32),
    Ended,
    /// Status line of the first answer, or what went wrong.
    Answered(Result<u16, String>),
}

/// Serves until the end. Returns the exit status of the launcher.
pub fn serve(mut plan: Plan) -> Result<u8, Error> {
    if plan.systemd_unit {
        let program = std::env::current_exe().map_err(Error::io("own path"))?;
        let args: Vec<_> = std::env::args_os().skip(1).collect();
        print!("{}", crate::unit::unit(&plan, &program, &args));
        return Ok(0);
    }
    if !plan.setup_only {
        listen::check(plan.host.as_deref(), plan.port)?;
    }
    // From here on Ctrl-C must not leave files behind.
    let (sender, events) = channel();
    watch_signals(sender.clone())?;
    let mode = if plan.account.switched { 0o711 } else { 0o700 };
    let mut root = ServerRoot::open(&plan.server_root, plan.server_root_named, mode)?;
    if plan.account.switched {
        access::check(&plan.account, &[(access::Need::Pass, root.path.clone())])?;
        let (server, name) = (plan.server.manner().name, &plan.account.name);
        note(&format!("started as root: {server}'s processes and Python run as {name} (see --user)"));
    }
    let outcome = import_check::run(
        &plan.application,
        &plan.interpreter.path,
        &plan.working_directory,
        &plan.python_path,
        &plan.account,
        || stop_wanted(&events),
    )?;
    let memory = match outcome {
        Outcome::Loaded { memory } => memory,
        Outcome::TooSlow => {
            note("MWR0621: the application has not finished loading within 60 s; starting all the same");
            None
        }
        Outcome::Stopped => return Ok(0),
    };
    if let Some(fit) = plan.fit(memory) {
        note(&fit.to_string());
        if fit.tight {
            note("MWR0642: the memory limit is less than 1.3 times what these processes need at their start");
        }
    }
    let plan = &plan;
    let spool = spool(plan, &root, mode)?;
    write_files(plan, &root, spool.as_ref().map(|s| s.path.as_path()))?;
    if plan.setup_only {
        return set_up(plan, root);
    }
    if stop_wanted(&events) {
        return Ok(0);
    }
    let mut running = Running::start(plan, sender)?;
    let outcome = running.run(plan, &events, &mut root);
    running.finish();
    outcome
}

/// The directory of the server's temporary files, where it wants one.
fn spool(plan: &Plan, root: &ServerRoot, mode: u32) -> Result<Option<Spool>, Error> {
    match plan.server.kind() {
        Kind::Apache => Ok(None),
        Kind::Nginx if plan.setup_only => Spool::inside(root, mode).map(Some),
        Kind::Nginx => {
            let (spool, why) = Spool::make(root, mode)?;
            if let Some(why) = why {
                note(&format!("MWR0644: {why}; bodies and answers for slow clients go to '{}'", spool.path.display()));
            }
            Ok(Some(spool))
        }
    }
}

/// A line for the person at the terminal.
fn note(text: &str) {
    // Standard error may have been closed; there is nobody to tell then.
    let _ = writeln!(std::io::stderr(), "mod-wsgi-rs: {text}");
}

fn stop_wanted(events: &Receiver<Event>) -> bool {
    events.try_iter().any(|e| matches!(e, Event::Signal(SIGINT | SIGTERM | SIGQUIT)))
}

/// Writes configuration, handler and directory of static files.
fn write_files(plan: &Plan, root: &ServerRoot, spool: Option<&Path>) -> Result<(), Error> {
    use crate::application::Application;
    let script = match &plan.application {
        Application::Script { path, .. } => path.clone(),
        Application::Module { module, callable } => {
            root.write("handler.wsgi", 0o644, &render::handler(module, callable))?
        }
    };
    let document_root = match &plan.document_root {
        Some(dir) => dir.clone(),
        None => root.directory("htdocs", 0o755)?,
    };
    let places = Places { script: &script, document_root: &document_root, spool };
    // --setenv values may be secrets: nobody but the caller reads this file.
    root.write(plan.server.manner().configuration, 0o600, &render::configuration(plan, places)?).map(drop)
}

/// `--setup-only`: has the server check what was written and says how to start it.
fn set_up(plan: &Plan, mut root: ServerRoot) -> Result<u8, Error> {
    let manner = plan.server.manner();
    let script = root.write(manner.control, 0o755, &render::control_script(plan)?)?;
    if let Some(said) = plan.server.ask(&root.path)? {
        let remedy = plan.server.remedy(&said).map_or(String::new(), |r| format!("\n{r}"));
        return Err(Error::ServerFailed(format!("{} refuses the configuration: {said}{remedy}", manner.name)));
    }
    root.keep();
    root.unlock();
    let script = access::shell_quote(&script);
    println!("Server:  {} {} ({})", manner.name, plan.server.version, plan.server.program.display());
    println!("Configuration: {}", root.path.join(manner.configuration).display());
    println!("Start:   {script} start        (in the foreground: {script} foreground)");
    println!("Stop:    {script} stop         Reload: {script} graceful");
    println!("Then at: {}", plan.url());
    Ok(0)
}

fn watch_signals(sender: Sender<Event>) -> Result<(), Error> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU])
        .map_err(Error::io("signals"))?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if sender.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// The running server.
struct Running {
    manner: &'static Manner,
    child: Child,
    pid: Pid,
    /// Tells the helper threads that there is nothing to wait for any more.
    over: Arc<AtomicBool>,
    ended: bool,
    copiers: Vec<Receiver<()>>,
}

impl Running {
    fn start(plan: &Plan, sender: Sender<Event>) -> Result<Running, Error> {
        let manner = plan.server.manner();
        let own = std::env::current_exe().map_err(Error::io("own path"))?;
        let mut command = Command::new(own);
        for name in crate::notify::VARIABLES {
            command.env_remove(name);
        }
        let mut child = command
            .arg("tied")
            .arg(std::process::id().to_string())
            .arg(&plan.server.program)
            .args(plan.server.arguments(&plan.server_root))
            .args(plan.server.foreground())
            // A process group of its own: Ctrl-C reaches the launcher alone, which stops the server in an orderly way, and a
            // terminal's resize (SIGWINCH) does not reach it: both servers would take it for an order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::io(format!("cannot start {}", manner.name)))?;
        let pid = Pid::from_raw(child.id() as i32);
        let over = Arc::new(AtomicBool::new(false));
        // Pipes, not the launcher's own streams: /dev/stderr can then be opened anew by the server whatever ours is.
        let mut copiers = Vec::new();
        if let Some(from) = child.stdout.take() {
            copiers.push(copy(from, std::io::stdout()));
        }
        if let Some(from) = child.stderr.take() {
            copiers.push(copy(from, std::io::stderr()));
        }
        let ended = sender.clone();
        std::thread::spawn(move || {
            // WNOWAIT: the child stays a zombie until the main thread reaps it, so its number is not reused meanwhile.
            while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::Error::EINTR) {}
            // Without a receiver the launcher is ending anyway.
            let _ = ended.send(Event::Ended);
        });
        let (host, port, path, stop) = (plan.host.clone(), plan.port, plan.mount_point.clone(), over.clone());
        std::thread::spawn(move || {
            let answer = first_answer(host.as_deref(), port, &path, &stop);
            // As above.
            let _ = sender.send(Event::Answered(answer));
        });
        Ok(Running { manner, child, pid, over, ended: false, copiers })
    }

    /// Waits for the end, whoever wants it.
    fn run(&mut self, plan: &Plan, events: &Receiver<Event>, root: &mut ServerRoot) -> Result<u8, Error> {
        let had_terminal = std::io::stdin().is_terminal();
        let mut served = false;
        let mut wishes = 0;
        let mut deadline: Option<Instant> = None;
        let manager = Manager::find();
        // A wish to stop that waits for --stop-delay.
        let mut held: Option<Instant> = None;
        // A signal for the server that came before it answered: until it has set its handlers up it would end by it.
        let mut early: Option<Signal> = None;
        let mut asked = false;
        loop {
            let event = match held.or(deadline) {
                Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if matches!(event, Ok(Event::Answered(_))) {
                asked = true;
                early.take().into_iter().for_each(|signal| self.signal(signal));
            }
            match event {
                Ok(Event::Answered(Ok(status))) => {
                    served = true;
                    let shown = format!("serving {}", plan.url());
                    manager.ready(&shown, &plan.server_root, &self.over);
                    root.keep_logs(plan.server_root_named);
                    self.announce(plan, status);
                }
                Ok(Event::Answered(Err(why))) => {
                    if deadline.is_none() && !self.over.load(Ordering::Relaxed) {
                        note(&format!("MWR0622: {why}"));
                    }
                }
                Ok(Event::Signal(SIGUSR1 | SIGHUP)) if !asked => early = Some(self.manner.reload),
                Ok(Event::Signal(SIGUSR1)) => self.signal(self.manner.reopen),
                Ok(Event::Signal(SIGHUP)) if !had_terminal || std::io::stdin().is_terminal() => {
                    manager.reloading(&plan.server_root);
                    self.signal(self.manner.reload)
                }
                Ok(Event::Signal(signal @ (SIGTTIN | SIGTTOU))) => {
                    let by = if signal == SIGTTIN { 1 } else { -1 };
                    command(plan, ctl_protocol::Command::ScaleBy { group: None, by });
                }
                Ok(Event::Signal(SIGUSR2)) => command(plan, ctl_protocol::Command::Stacks { group: None }),
                Ok(Event::Signal(SIGTERM)) if wishes == 0 && held.is_none() && plan.stop_delay > 0 => {
                    held = Some(Instant::now() + Duration::from_secs(plan.stop_delay));
                    if plan.readiness {
                        command(plan, ctl_protocol::Command::Readiness { ready: false });
                    }
                }
                Ok(Event::Signal(signal)) => {
                    held = None;
                    wishes += 1;
                    manager.stopping();
                    // SIGTERM is what a container or service manager sends: running requests may finish.
                    let gently = signal == SIGTERM && wishes == 1;
                    self.signal(if gently { self.manner.drain } else { self.manner.stop });
                    deadline = Some(Instant::now() + if gently { self.drain_time() } else { STOP_PATIENCE });
                }
                Ok(Event::Ended) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if held.is_some() => {
                    manager.stopping();
                    held = None;
                    wishes += 1;
                    self.signal(self.manner.drain);
                    deadline = Some(Instant::now() + self.drain_time());
                }
                Err(RecvTimeoutError::Timeout) => {
                    wishes += 1;
                    if wishes > 2 {
                        // ESRCH: the group ended in this moment.
                        let _ = killpg(self.pid, Signal::SIGKILL);
                    } else {
                        self.signal(self.manner.stop);
                    }
                    deadline = Some(Instant::now() + STOP_PATIENCE);
                }
            }
        }
        let status = self.reap()?;
        if deadline.is_some() || held.is_some() || (served && status.success()) {
            return Ok(0);
        }
        let when = if served { "" } else { " before it served anything" };
        let lines = self.last_words(&plan.server_root.join("error_log"));
        // What it has said is on the terminal; asked again, it says it where it can be read.
        let said = if served { None } else { plan.server.ask(&plan.server_root)? };
        let remedy = said.and_then(|s| plan.server.remedy(&s)).map_or(String::new(), |r| format!("\n{r}"));
        Err(Error::ServerFailed(format!("{} ended{when} ({status}){lines}{remedy}", self.manner.name)))
    }

    fn announce(&self, plan: &Plan, status: u16) {
        let mut out = std::io::stdout();
        // Standard output may have been closed; serving goes on.
        let _ = writeln!(out, "Serving {} at {}", plan.application.label(), plan.url());
        let (server, version, program) = (self.manner.name, &plan.server.version, plan.server.program.display());
        let _ = writeln!(out, "{server} {version} ({program}), {} (Ctrl-C ends it)", plan.interpreter);
        if plan.reload_on_changes {
            let _ = writeln!(out, "Loads new code when files change: for development");
        }
        if !plan.log_to_terminal {
            let _ = writeln!(out, "Error log: {}", plan.server_root.join("error_log").display());
        }
        let _ = out.flush();
        if status >= 500 {
            note(&format!(
                "MWR0622: the application answers {} with status {status}; see the error log",
                plan.mount_point
            ));
        }
    }

    /// How long it may take to end once it has been told to drain, before it is told to stop.
    fn drain_time(&self) -> Duration {
        let drain = Duration::from_secs(GRACEFUL_SHUTDOWN.into());
        if self.manner.bounds_drain { drain + STOP_PATIENCE } else { drain }
    }

    fn signal(&self, signal: Signal) {
        // ESRCH: it has ended, which the next event says.
        let _ = kill(self.pid, signal);
    }

    fn reap(&mut self) -> Result<ExitStatus, Error> {
        let status = self.child.wait().map_err(Error::io(format!("cannot wait for {}", self.manner.name)))?;
        self.ended = true;
        self.drain();
        Ok(status)
    }

    /// Lets the copiers pass on what is still in the pipes; a process that outlives the server may keep them open.
    fn drain(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + Duration::from_millis(500);
        for copier in self.copiers.drain(..) {
            let _ = copier.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
    }

    /// After an error of ours: nothing keeps running.
    fn finish(&mut self) {
        if !self.ended {
            self.signal(self.manner.stop);
            // Bounded by the kill: a child that cannot be waited for is nobody's any more.
            let _ = self.child.wait();
            self.drain();
        }
    }

    /// The end of the error log. What the server writes before it has one is on standard error already.
    fn last_words(&self, error_log: &Path) -> String {
        let text = read_tail(error_log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        match &lines[lines.len().saturating_sub(20)..] {
            [] => "; its message is above".into(),
            shown => format!(":\n{}", shown.join("\n")),
        }
    }
}

/// Gives the supervisor a command, in a thread of its own: the launcher goes on listening to signals.
fn command(plan: &Plan, order: ctl_protocol::Command) {
    let root = plan.server_root.clone();
    std::thread::spawn(move || {
        let done = ctl::run_directory_of(&root).and_then(|directory| ctl::order(&directory, order));
        match done {
            Ok((_, text)) => text.lines().for_each(note),
            Err(e) => note(&format!("{}: {e}", e.code())),
        }
    });
}

fn read_tail(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL as u64)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Copies in a thread of its own; the receiver hears of the end.
fn copy(mut from: impl Read + Send + 'static, mut to: impl Write + Send + 'static) -> Receiver<()> {
    let (done, receiver) = channel();
    std::thread::spawn(move || {
        let mut chunk = [0; 8192];
        while let Ok(n @ 1..) = from.read(&mut chunk) {
            // A closed terminal must not stop the server from writing.
            let _ = to.write_all(&chunk[..n]).and_then(|()| to.flush());
        }
        // Nobody listens when the launcher has not waited.
        let _ = done.send(());
    });
    receiver
}

/// Asks the application until it answers with anything but 503 (workers still start).
fn first_answer(host: Option<&str>, port: u16, path: &str, over: &AtomicBool) -> Result<u16, String> {
    let host = match host {
        None | Some("0.0.0.0") => "127.0.0.1",
        Some("::") => "::1",
        Some(host) => host,
    };
    let deadline = Instant::now() + READY_DEADLINE;
    let mut last = "nothing listens".to_string();
    while Instant::now() < deadline {
        if over.load(Ordering::Relaxed) {
            return Err("the server has ended".into());
        }
        match ask(host, port, path) {
            Ok(503) => last = "it answers 503".into(),
            Ok(status) => return Ok(status),
            Err(e) => last = e.to_string(),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("no answer of the application within {} s ({last}); still trying to serve", READY_DEADLINE.as_secs()))
}

/// One HEAD request; the status.
fn ask(host: &str, port: u16, path: &str) -> std::io::Result<u16> {
    let other = |text: &str| std::io::Error::other(text.to_string());
    let address = (host, port).to_socket_addrs()?.next().ok_or_else(|| other("host without an address"))?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(READY_DEADLINE))?;
    let encoded: String = path.bytes().map(encode).collect();
    let shown = if host.contains(':') { format!("[{host}]") } else { host.to_string() };
    write!(
        stream,
        "HEAD {encoded} HTTP/1.1\r\nHost: {shown}:{port}\r\nUser-Agent: mod-wsgi-rs express\r\nConnection: close\r\n\r\n"
    )?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    let text = std::str::from_utf8(&head).map_err(|_| other("no HTTP answer"))?;
    text.strip_prefix("HTTP/1.1 ").and_then(|s| s.parse().ok()).ok_or_else(|| other("no HTTP answer"))
}

pub fn encode(byte: u8) -> String {
    let plain = byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte);
    if plain { (byte as char).to_string() } else { format!("%{byte:02X}") }
}
