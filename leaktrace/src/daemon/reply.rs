//! An answer for which somebody waits only so long.
//!
//! Invariant: either it reaches who asked, or who answers knows that it did not, so that nothing takes effect that nobody
//! knows of.

use std::{sync::mpsc, time::Duration};

use super::control::state::Settlement;

/// Where the answer goes.
pub struct Reply<T> {
    sender: mpsc::Sender<T>,
    settlement: Settlement,
}

/// Who waits for it.
pub struct Awaited<T> {
    receiver: mpsc::Receiver<T>,
    settlement: Settlement,
}

/// Both sides of one answer.
pub fn reply<T>() -> (Reply<T>, Awaited<T>) {
    let (sender, receiver) = mpsc::channel();
    let settlement = Settlement::default();
    let awaited = Awaited {
        receiver,
        settlement: settlement.clone(),
    };
    (Reply { sender, settlement }, awaited)
}

impl<T> Reply<T> {
    /// Whether the answer arrives.
    pub fn send(self, answer: T) -> bool {
        self.settlement.claim() && self.sender.send(answer).is_ok()
    }
}

impl<T> Awaited<T> {
    /// The answer; `None` when there is none within `limit`, or never will be.
    pub fn wait(self, limit: Duration) -> Option<T> {
        match self.receiver.recv_timeout(limit) {
            Ok(answer) => Some(answer),
            Err(_) if self.settlement.claim() => None,
            // It was settled at this very moment: the answer is on its way.
            Err(_) => self.receiver.recv().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_in_time_arrives() {
        let (reply, awaited) = reply();
        assert!(reply.send(7));
        assert_eq!(awaited.wait(Duration::from_secs(10)), Some(7));
    }

    #[test]
    fn who_answers_late_knows_that_nobody_waits() {
        let (reply, awaited) = reply();
        assert_eq!(awaited.wait(Duration::ZERO), None);
        assert!(!reply.send(7));
    }

    #[test]
    fn who_never_answers_ends_the_waiting() {
        let (reply, awaited) = reply::<u8>();
        drop(reply);
        assert_eq!(awaited.wait(Duration::from_secs(600)), None);
    }

    #[test]
    fn both_sides_agree_however_close_it_is() {
        for round in 0..2_000 {
            let (reply, awaited) = reply();
            let answering = std::thread::spawn(move || reply.send(round));
            let answer = awaited.wait(Duration::from_nanos(round % 64 * 500));
            let arrived = answering.join().expect("it does not panic");
            assert_eq!(arrived, answer.is_some(), "round {round}");
        }
    }
}
