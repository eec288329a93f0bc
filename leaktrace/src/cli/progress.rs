//! The progress line, on a terminal only.

use std::{
    io::{IsTerminal, stderr},
    sync::atomic::Ordering,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::quantity;
use crate::session::pump::Figures;

/// One line on stderr that is kept up to date; nothing where stderr is no terminal.
pub struct Progress {
    bar: ProgressBar,
    events: u64,
    at: Duration,
}

impl Progress {
    /// An empty line.
    pub fn new() -> Self {
        let target = if stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        Self {
            bar,
            events: 0,
            at: Duration::ZERO,
        }
    }

    /// Shows the figures.
    pub fn show(&mut self, elapsed: Duration, figures: &Figures) {
        if self.bar.is_hidden() {
            return;
        }
        let events = figures.events.load(Ordering::Relaxed);
        let seconds = elapsed.saturating_sub(self.at).as_secs_f64();
        let rate = if seconds > 0.0 {
            (events - self.events) as f64 / seconds
        } else {
            0.0
        };
        self.events = events;
        self.at = elapsed;
        let lost = match figures.lost.load(Ordering::Relaxed) {
            0 => "nothing lost".to_owned(),
            lost => format!("{lost} allocations lost"),
        };
        self.bar.set_message(format!(
            "{:>5.0}s  {rate:.0} events/s  {} live  {lost}",
            elapsed.as_secs_f64(),
            quantity::bytes(figures.live_bytes.load(Ordering::Relaxed)),
        ));
    }

    /// Takes the line away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
