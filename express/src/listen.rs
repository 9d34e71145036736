//! Whether the port is free, and who has it when it is not.

use crate::error::Error;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

/// Binds every address the server will bind, and lets go of them again.
pub fn check(host: Option<&str>, port: u16) -> Result<(), Error> {
    let shown = display(host, port);
    let refuse = |why: String| Error::Listen { address: shown.clone(), why };
    let addresses: Vec<SocketAddr> = match host {
        Some(name) => {
            let found = (name, port).to_socket_addrs().map_err(|e| refuse(format!("the host is not known: {e}")))?;
            found.collect()
        }
        None => vec![SocketAddr::from(([0u16; 8], port)), SocketAddr::from(([0u8; 4], port))],
    };
    for address in addresses {
        match TcpListener::bind(address) {
            Ok(_) => {}
            // A machine without IPv6: the server then takes IPv4 alone.
            Err(e) if host.is_none() && address.is_ipv6() && e.kind() != ErrorKind::AddrInUse => {}
            Err(e) if e.kind() == ErrorKind::AddrInUse => {
                let by =
                    holder(port).map_or("another process".to_string(), |(pid, name)| format!("process {pid} ({name})"));
                return Err(refuse(format!("the port is taken by {by}; end it or choose another --port")));
            }
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                return Err(refuse(not_allowed(port, first_free())));
            }
            Err(e) if e.kind() == ErrorKind::AddrNotAvailable => {
                return Err(refuse("the address is none of this machine".into()));
            }
            Err(e) => return Err(refuse(e.to_string())),
        }
    }
    Ok(())
}

/// The first port that needs no privilege, in this network namespace. Engines set it to 0 in those of their containers.
fn first_free() -> Option<u16> {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok()?.trim().parse().ok()
}

/// Why a port is refused, and what helps. That a container was given the capability does not: it reaches root alone.
fn not_allowed(port: u16, first_free: Option<u16>) -> String {
    match first_free {
        Some(first) if port >= first => "this process may not listen there; choose another --port".into(),
        _ => format!(
            "ports below {} need root with the capability NET_BIND_SERVICE; choose another --port, or set \
             net.ipv4.ip_unprivileged_port_start to {port} or less",
            first_free.unwrap_or(1024)
        ),
    }
}

/// Whether this machine has IPv6.
pub fn has_ipv6() -> bool {
    TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

/// Host and port as one writes them in a URL and in `Listen`.
pub fn display(host: Option<&str>, port: u16) -> String {
    match host {
        None => format!("port {port}"),
        Some(host) if host.contains(':') => format!("[{}]:{port}", host.trim_matches(['[', ']'])),
        Some(host) => format!("{host}:{port}"),
    }
}

/// Process and program that listen on the port, as far as this user may see.
fn holder(port: u16) -> Option<(u32, String)> {
    let inodes: Vec<String> = ["/proc/net/tcp6", "/proc/net/tcp"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|text| listening_inodes(&text, port))
        .collect();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let has = descriptors.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|target| {
            target
                .to_str()
                .and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']'))
                .is_some_and(|inode| inodes.iter().any(|i| i == inode))
        });
        if has {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((pid, name.trim().to_string()));
        }
    }
    None
}

/// Inodes of listening sockets on the port, of a table such as /proc/net/tcp.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    let ours = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // sl local_address rem_address st … inode is the tenth; state 0A is LISTEN.
            (fields.get(1)?.ends_with(&ours) && *fields.get(3)? == "0A")
                .then(|| fields.get(9).map(|i| i.to_string()))?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_holder_of_a_taken_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = check(Some("127.0.0.1"), port).unwrap_err().to_string();
        assert!(text.contains(&format!("process {} ", std::process::id())), "{text}");
        drop(listener);
        // Another process may have got the port meanwhile; this one has it no more.
        if let Err(e) = check(Some("127.0.0.1"), port) {
            assert!(!e.to_string().contains(&format!("process {} ", std::process::id())), "{e}");
        }
    }

    #[test]
    fn reads_the_table_of_sockets() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: \
                     00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n   1: \
                     0100007F:1F40 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1\n";
        assert_eq!(listening_inodes(table, 8000), ["4711"]);
        assert!(listening_inodes(table, 80).is_empty());
    }

    #[test]
    fn says_why_a_port_is_not_allowed() {
        let text = not_allowed(80, Some(1024));
        assert!(text.starts_with("ports below 1024 ") && text.ends_with("_port_start to 80 or less"), "{text}");
        assert!(!not_allowed(80, Some(0)).contains("ports below"));
        assert!(not_allowed(443, None).starts_with("ports below 1024 "));
    }

    #[test]
    fn writes_addresses() {
        assert_eq!(display(Some("::1"), 80), "[::1]:80");
        assert_eq!(display(Some("localhost"), 80), "localhost:80");
    }
}
