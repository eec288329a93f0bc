//! How many records userspace can take: the real ring, reader and ledger, fed by the kernel at a given rate.

use std::time::{Duration, Instant};

use leaktrace_common::reason::Counter;
use serde::Serialize;

use super::{
    pump::{self, Pump},
    recording::RecordError,
    source::KernelSource,
    stack_memory::StackMemory,
    tracer,
};
use crate::{
    bpf::{feed::PAIRS, kernel::Kernel},
    ledger,
};

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// Records that reached the ledger.
    pub events: u64,
    /// Records made a second.
    pub rate: f64,
    /// Allocations lost.
    pub lost: u64,
    /// CPU time of the reader thread in seconds.
    pub reader_seconds: f64,
    /// Records that the reader takes in a second of one CPU.
    pub events_per_second: f64,
    /// Blocks outstanding at the end.
    pub outstanding: usize,
    /// Bytes of memory for each of them.
    pub bytes_per_block: f64,
}

/// Feeds `events` records at `rate` records a second, over a live set of `live` blocks.
pub fn measure(events: u64, live: u64, rate: f64) -> Result<Measured, RecordError> {
    let mut parts = Kernel::load(tracer::sizes(&[], 64 << 20))?;
    let mut feed = parts.kernel.feed(live)?;
    let (sender, _notices) = pump::notice_channel();
    let source = KernelSource::new(parts.ring, parts.deferred, parts.lost, parts.counters);
    let pump = Pump::start(source, sender, StackMemory::Each(ledger::DEFAULT_LIMIT)).map_err(RecordError::Thread)?;
    let started = Instant::now();
    let mut made = 0;
    while made < events {
        feed.run().map_err(RecordError::Thread)?;
        made += 2 * PAIRS;
        let due = Duration::from_secs_f64(made as f64 / rate);
        std::thread::sleep(due.saturating_sub(started.elapsed()));
    }
    let elapsed = started.elapsed();
    let outcome = pump.stop();
    let ledgers = || outcome.ledgers.values();
    let events = ledgers().map(|ledger| ledger.notes().events).sum();
    let outstanding: usize = ledgers().map(crate::ledger::Ledger::outstanding).sum();
    let memory: usize = ledgers().map(crate::ledger::Ledger::memory).sum();
    Ok(Measured {
        events,
        rate: events as f64 / elapsed.as_secs_f64(),
        lost: outcome.counters[Counter::AllocLost as usize],
        reader_seconds: outcome.cpu.as_secs_f64(),
        events_per_second: events as f64 / outcome.cpu.as_secs_f64(),
        outstanding,
        bytes_per_block: memory as f64 / outstanding.max(1) as f64,
    })
}
