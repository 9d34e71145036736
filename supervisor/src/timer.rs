//! Deadlines for poll(2).

use nix::poll::{PollTimeout, poll};
use std::time::{Duration, Instant};

/// Time until `deadline`, rounded up to milliseconds so that a wait does not end just before it.
pub fn poll_timeout(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now());
    let ms = left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
    PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
}

/// Waits for `time` between two looks at something that has no descriptor.
pub fn wait(time: Duration) {
    let _ = poll(&mut [], poll_timeout(Instant::now() + time));
}

/// Seconds of a configuration as a duration; negative, endless and absurd values are cut to 0 and ten years.
pub fn seconds(s: f64) -> Duration {
    const MOST: f64 = 10.0 * 365.0 * 86400.0;
    Duration::from_secs_f64(if s.is_nan() { 0.0 } else { s.clamp(0.0, MOST) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_of_a_configuration_never_panic() {
        assert_eq!(seconds(-1.0), Duration::ZERO);
        assert_eq!(seconds(f64::NAN), Duration::ZERO);
        assert!(seconds(f64::INFINITY) > Duration::from_secs(86400));
        assert_eq!(seconds(0.5), Duration::from_millis(500));
    }
}
