//! What a service manager is told (sd_notify): ready, reloading, stopping, and that the supervisor answers.

use crate::ctl;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Variables that speak of the service itself: the server and its children must not answer for the launcher.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];
/// How long a reload may take before the service manager is told that it is over.
const RELOAD: Duration = Duration::from_secs(60);

/// The service manager, if one has started the launcher.
#[derive(Clone)]
pub struct Manager {
    socket: Option<Arc<(UnixDatagram, SocketAddr)>>,
}

impl Manager {
    /// From the environment.
    pub fn find() -> Manager {
        let socket = std::env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let address = match name.as_bytes().split_first()? {
                (b'@', rest) => SocketAddr::from_abstract_name(rest).ok()?,
                (b'/', _) => SocketAddr::from_pathname(Path::new(&name)).ok()?,
                _ => return None,
            };
            Some(Arc::new((UnixDatagram::unbound().ok()?, address)))
        });
        Manager { socket }
    }

    fn tell(&self, text: &str) {
        if let Some(s) = &self.socket {
            // A manager that does not listen is none: serving goes on.
            let _ = s.0.send_to_addr(text.as_bytes(), &s.1);
        }
    }

    /// The application answers. Begins to say that it lives, if that is wanted.
    pub fn ready(&self, status: &str, server_root: &Path, over: &Arc<AtomicBool>) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let Some(period) = number("WATCHDOG_USEC").filter(|n| *n > 0 && meant).map(Duration::from_micros) else {
            return;
        };
        if self.socket.is_none() {
            return;
        }
        let (manager, over, root) = (self.clone(), over.clone(), server_root.to_owned());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                if ctl::run_directory_of(&root).is_ok_and(|d| ctl::live(&d).is_ok()) {
                    manager.tell("WATCHDOG=1");
                }
                std::thread::sleep(period / 3);
            }
        });
    }

    /// The configuration is being read again; ready once a new generation of the server has told the supervisor.
    pub fn reloading(&self, server_root: &Path) {
        if self.socket.is_none() {
            return;
        }
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        let usec = now.map_or(0, |t| t.tv_sec() as u64 * 1_000_000 + t.tv_nsec() as u64 / 1000);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
        let (manager, root) = (self.clone(), server_root.to_owned());
        let before = generation(&root);
        std::thread::spawn(move || {
            let end = Instant::now() + RELOAD;
            while generation(&root) <= before && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(50));
            }
            manager.tell("READY=1");
        });
    }

    /// It ends.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }
}

/// Number of the newest configuration that the supervisor serves; 0 when it does not answer.
fn generation(server_root: &Path) -> u64 {
    let directory: Option<PathBuf> = ctl::run_directory_of(server_root).ok();
    let status = directory.and_then(|d| ctl::ask(&d).ok());
    let masters = status.as_ref().and_then(|s| s["masters"].as_array());
    masters.into_iter().flatten().filter_map(|m| m["generation"].as_u64()).max().unwrap_or(0)
}
