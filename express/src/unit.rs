//! `--systemd-unit`: a unit that runs the same command line as a service, with what systemd can take away taken away.

use crate::plan::Plan;
use crate::render::GRACEFUL_SHUTDOWN;
use std::ffi::OsString;
use std::path::Path;

/// One word of ExecStart: quoted where need be; `%` and `$` mean something to systemd.
fn word(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@,%$".contains(c);
    if !text.is_empty() && escaped.chars().all(plain) { escaped } else { format!("\"{escaped}\"") }
}

/// The unit. `args`: the command line behind the program's name.
pub fn unit(plan: &Plan, program: &Path, args: &[OsString]) -> String {
    let args = args.iter().filter(|a| *a != "--systemd-unit").map(|a| word(&a.to_string_lossy()));
    let mut command: Vec<String> = std::iter::once(word(&program.to_string_lossy())).chain(args).collect();
    if !plan.server_root_named {
        command.push(format!("--server-root %t/mod-wsgi-rs-{}/server", plan.port));
    }
    let directory = word(&plan.working_directory.to_string_lossy());
    let low = if plan.port < 1024 { "CAP_NET_BIND_SERVICE" } else { "" };
    let (user, port) = (&plan.account.name, plan.port);
    let stop = u64::from(GRACEFUL_SHUTDOWN) + plan.stop_delay + 30;
    format!(
        "[Unit]
Description=WSGI application {label} on port {port}
Documentation=man:systemd.service(5)
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
WorkingDirectory={directory}
User={user}
RuntimeDirectory=mod-wsgi-rs-{port}
Restart=on-failure
RestartSec=2
WatchdogSec=60
# The launcher drains on SIGTERM; what is left after that is killed.
KillMode=mixed
TimeoutStopSec={stop}
# A worker that is killed for want of memory is replaced; by default systemd would stop the whole service.
OOMPolicy=continue
AmbientCapabilities={low}
CapabilityBoundingSet={low}
NoNewPrivileges=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectSystem=strict
ProtectHome=read-only
# What the application writes to; add further directories.
ReadWritePaths={directory}
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
UMask=0022

[Install]
WantedBy=multi-user.target
",
        label = plan.application.label().replace('%', "%%"),
        command = command.join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_systemd() {
        assert_eq!(word("/srv/app.wsgi"), "/srv/app.wsgi");
        assert_eq!(word("a b"), "\"a b\"");
        assert_eq!(word("100%$x\"\\"), "\"100%%$$x\\\"\\\\\"");
        assert_eq!(word(""), "\"\"");
    }
}
