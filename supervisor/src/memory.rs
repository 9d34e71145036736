//! What the kernel says about memory: how much is left, and how many processes have been killed for want of it.

/// The control group (version 2) of this process and those above it, as directories.
fn groups() -> Vec<String> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(own) = own.lines().find_map(|l| l.strip_prefix("0::")) else { return Vec::new() };
    let mut out = Vec::new();
    let mut path = Some(own.trim_end_matches('/'));
    while let Some(p) = path {
        out.push(format!("/sys/fs/cgroup{p}"));
        path = p.rfind('/').map(|at| &p[..at]);
    }
    out
}

/// Bytes that may still be used: what the machine has left, and every control group above this process. `None`: the
/// kernel does not say.
pub fn left() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let mut left = line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10;
    let number = |path: String| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // A container sees its own group as the root.
    for dir in groups() {
        if let (Some(max), Some(used)) = (number(format!("{dir}/memory.max")), number(format!("{dir}/memory.current")))
        {
            left = left.min(max.saturating_sub(used));
        }
    }
    Some(left)
}

/// Processes killed for want of memory so far: in this control group, or, where that is the root, on this machine.
pub fn oom_kills() -> Option<u64> {
    let count = |path: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        text.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse().ok())
    };
    let own = groups().first().and_then(|dir| count(&format!("{dir}/memory.events")));
    own.or_else(|| count("/proc/vmstat"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says() {
        assert!(left().is_some_and(|m| m > 1 << 20));
        assert!(oom_kills().is_some());
    }
}
