//! How long a request waited and ran, as the server that sent it knows: for its access log. Decides nothing.

use std::fmt;
use std::time::{Duration, Instant};

/// The times of one request. The worker tells how long the application has had a request when its head comes; all clocks
/// are monotonic, and those of two processes are never compared.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    from: Instant,
    /// When the head came, and how long the application had had the request by then.
    head: Option<(Instant, Duration)>,
    /// How long the application has had it at END.
    application: Option<Duration>,
}

impl Times {
    /// Of a request that is ready to be sent since `from`.
    pub fn new(from: Instant) -> Times {
        Times { from, head: None, application: None }
    }

    /// The head has come. `ran`: what the worker says with it.
    pub fn head(&mut self, ran: Duration) {
        self.head = Some((Instant::now(), ran));
    }

    /// The response is whole. `with_head`: it came with the head.
    pub fn end(&mut self, with_head: bool) {
        self.application = self.head.map(|(at, ran)| if with_head { ran } else { ran + at.elapsed() });
    }

    /// From the moment the request could have been sent to the moment a thread took it; `None` before the head has come.
    /// Milliseconds are what the worker tells.
    pub fn queue(&self) -> Option<Duration> {
        self.head.map(|(at, ran)| at.duration_since(self.from).saturating_sub(ran))
    }

    /// From the moment a thread took the request to END; `None` before it.
    pub fn application(&self) -> Option<Duration> {
        self.application
    }
}

/// A duration as seconds with three digits after the point, as nginx writes its own.
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0.as_secs(), self.0.subsec_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_what_the_application_did_not_have() {
        let from = Instant::now() - Duration::from_millis(500);
        let mut t = Times::new(from);
        assert!(t.queue().is_none() && t.application().is_none());
        t.head(Duration::from_millis(200));
        let queue = t.queue().unwrap();
        assert!(queue >= Duration::from_millis(300) && queue < Duration::from_secs(60), "{queue:?}");
        t.end(true);
        assert_eq!(t.application(), Some(Duration::from_millis(200)));
        t.end(false);
        assert!(t.application().unwrap() >= Duration::from_millis(200));
        // A worker that says more than can be.
        t.head(Duration::from_secs(9 * 3600));
        assert_eq!(t.queue(), Some(Duration::ZERO));
    }

    #[test]
    fn seconds() {
        assert_eq!(Seconds(Duration::from_micros(1_002_999)).to_string(), "1.002");
        assert_eq!(Seconds(Duration::ZERO).to_string(), "0.000");
    }
}
