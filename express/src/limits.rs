//! `--container-limits`: how many Python processes the limits of the control group hold, and how large each may grow.

use std::fmt;
use std::path::{Path, PathBuf};

/// Most processes that are chosen by themselves.
const MOST: u64 = 4;

/// No limit is written as a number near 2^63 in version 1 of control groups.
const NO_LIMIT: u64 = 1 << 60;

/// What the container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Whole processors, from quota and affinity; at least 1.
    pub processors: u64,
    /// Bytes.
    pub memory: Option<u64>,
}

impl Limits {
    /// The limits of this process.
    pub fn here() -> Limits {
        let memory = std::fs::read_to_string("/proc/self/cgroup")
            .ok()
            .and_then(|text| memory_limit(&text, Path::new("/sys/fs/cgroup")));
        // Takes quota (rounded down) and affinity into account.
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        Limits { processors, memory }
    }
}

/// The least memory limit of the control groups this process is in. Version 1 and 2; also where the names in `groups` are
/// those of the host and `base` shows the container's own group at its top.
fn memory_limit(groups: &str, base: &Path) -> Option<u64> {
    let mut files: Vec<PathBuf> = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (top, file) = match controllers {
            "" => (base.to_path_buf(), "memory.max"),
            c if c.split(',').any(|c| c == "memory") => (base.join("memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        let own = top.join(path.trim_start_matches('/'));
        files.extend(own.ancestors().take_while(|d| d.starts_with(&top)).map(|d| d.join(file)));
    }
    let limits = files.iter().filter_map(|f| std::fs::read_to_string(f).ok()?.trim().parse::<u64>().ok());
    limits.filter(|n| *n < NO_LIMIT).min()
}

/// What was chosen, and from what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    pub limits: Limits,
    /// Memory of one process with the application loaded, where it could be measured.
    pub one: Option<u64>,
    pub processes: u64,
    /// The text of `max-rss`.
    pub max_rss: Option<String>,
    /// One process with its reserve is more than the limit.
    pub tight: bool,
}

/// `given`: the number of processes if it is not to be chosen. A process may need 1.3 times what it needs at its start; when
/// it grows beyond its part of nine tenths of the limit it is replaced.
pub fn fit(limits: Limits, one: Option<u64>, given: Option<u64>) -> Fit {
    let by_processors = limits.processors.clamp(1, MOST);
    let room = limits.memory.zip(one).map(|(limit, one)| limit * 10 / (one * 13).max(1));
    let chosen = room.map_or(by_processors, |r| by_processors.min(r)).max(1);
    let processes = given.unwrap_or(chosen);
    let max_rss = limits.memory.map(|limit| limit / 10 * 9 / processes / 1024).filter(|k| *k >= 1024);
    Fit {
        limits,
        one,
        processes,
        max_rss: max_rss.map(|k| format!("{k}K")),
        tight: room.is_some_and(|r| r < processes),
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |n: u64| format!("{} MiB", n.div_ceil(1 << 20));
        let s = if self.processes == 1 { "" } else { "es" };
        write!(f, "{} process{s}: processors {}", self.processes, self.limits.processors)?;
        match self.limits.memory {
            Some(limit) => write!(f, ", memory limit {}", mib(limit))?,
            None => write!(f, ", no memory limit")?,
        }
        match self.one {
            Some(one) => write!(f, ", application {}", mib(one))?,
            None => write!(f, ", memory of the application unknown")?,
        }
        self.max_rss.as_ref().map_or(Ok(()), |m| write!(f, ", max-rss {m}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn chosen(processors: u64, memory: Option<u64>, one: Option<u64>) -> (u64, Option<String>, bool) {
        let f = fit(Limits { processors, memory }, one, None);
        (f.processes, f.max_rss, f.tight)
    }

    #[test]
    fn processes_follow_processors_and_memory() {
        assert_eq!(chosen(1, None, None), (1, None, false));
        assert_eq!(chosen(16, None, Some(MIB)), (4, None, false));
        assert_eq!(chosen(4, Some(512 * MIB), Some(100 * MIB)), (3, Some("157286K".into()), false));
        assert_eq!(chosen(4, Some(130 * MIB), Some(100 * MIB)), (1, Some("119808K".into()), false));
        assert_eq!(chosen(4, Some(100 * MIB), Some(100 * MIB)), (1, Some("92160K".into()), true));
        assert_eq!(chosen(2, Some(512 * MIB), None).0, 2);
    }

    #[test]
    fn a_given_number_stays() {
        let limits = Limits { processors: 1, memory: Some(100 * MIB) };
        let f = fit(limits, Some(50 * MIB), Some(3));
        assert_eq!((f.processes, f.max_rss.as_deref(), f.tight), (3, Some("30720K"), true));
        let text = "3 processes: processors 1, memory limit 100 MiB, application 50 MiB, max-rss 30720K";
        assert_eq!(f.to_string(), text);
    }

    #[test]
    fn limits_of_control_groups() {
        let base = std::env::temp_dir().join(format!("mwr-limits-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&base);
        let put = |name: &str, text: &str| {
            let file = base.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        // Version 2: the group's own limit and those above it.
        put("a/b/memory.max", "max\n");
        put("a/memory.max", "1000\n");
        assert_eq!(memory_limit("0::/a/b\n", &base), Some(1000));
        assert_eq!(memory_limit("0::/c\n", &base), None);
        // In a container: its own group is the top.
        put("memory.max", "500\n");
        assert_eq!(memory_limit("0::/\n", &base), Some(500));
        // Version 1, names of the host, the top is the container's.
        put("memory/memory.limit_in_bytes", "700\n");
        assert_eq!(memory_limit("4:memory:/docker/x\n3:cpu:/docker/x\n", &base), Some(700));
        put("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(memory_limit("4:memory:/docker/x\n", &base), None);
        std::fs::remove_dir_all(&base).unwrap();
    }
}
