//! Return addresses to source-level stacks, the way Go's own tracebacks show them.
//!
//! Owns what the runtime knows and pclntab alone does not say: which address of a frame to look up, which functions the
//! compiler made and tracebacks leave out, and how inlined calls are recorded in heap profiles. Looks each address up
//! once.

use hashbrown::HashMap;
use std::sync::Arc;

use crate::runtime::go::offsets::wrapper_function_id;
use crate::runtime::go::pclntab::{Frame, PclnTable};
use crate::runtime::go::version::GoVersion;

/// An instruction with the source-level frames there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place<'t> {
    /// Address of the call (for the innermost frame of a parked goroutine too: one below the return address).
    pub address: u64,
    /// Innermost first; all but the last were inlined into the next.
    pub frames: Vec<Frame<'t>>,
}

/// Looks addresses up in one table.
#[derive(Debug)]
pub struct Symbolizer<'t> {
    table: &'t PclnTable,
    wrapper: u8,
    frames: HashMap<u64, Arc<[Frame<'t>]>>,
}

/// Addresses that are remembered; more are forgotten all at once.
const MAX_CACHED: usize = 1 << 20;

impl<'t> Symbolizer<'t> {
    /// For the table of a binary of this version.
    pub fn new(table: &'t PclnTable, version: &GoVersion) -> Self {
        Self {
            table,
            wrapper: wrapper_function_id(version),
            frames: HashMap::new(),
        }
    }

    /// The table.
    pub fn table(&self) -> &'t PclnTable {
        self.table
    }

    /// Frames at exactly this address, innermost first.
    pub fn frames(&mut self, address: u64) -> Arc<[Frame<'t>]> {
        if let Some(known) = self.frames.get(&address) {
            return known.clone();
        }
        if self.frames.len() >= MAX_CACHED {
            self.frames.clear();
        }
        let frames: Arc<[Frame<'t>]> = self.table.frames(address).into();
        self.frames.insert(address, frames.clone());
        frames
    }

    /// Address of the call for a return address.
    fn call_address(&self, pc: u64) -> u64 {
        match self.table.function_at(pc) {
            Some(function) if function.entry == pc => pc,
            _ => pc.saturating_sub(1),
        }
    }

    /// The stack of a heap bucket. Its addresses are logical: one for each inlined call too, which are joined again
    /// into the place that they belong to.
    pub fn heap_stack(&mut self, stack: &[u64]) -> Vec<Place<'t>> {
        let mut places = Vec::with_capacity(stack.len());
        let mut index = 0;
        while index < stack.len() {
            let address = self.call_address(stack[index]);
            let frames = self.frames(address);
            let joined = (1..frames.len()).all(|offset| {
                stack.get(index + offset).is_some_and(|&next| {
                    let next = self.call_address(next);
                    self.frames(next).first().is_some_and(|first| {
                        first.function == frames[offset].function && first.line == frames[offset].line
                    })
                })
            });
            if joined {
                index += frames.len().max(1);
                places.push(Place {
                    address,
                    frames: frames.to_vec(),
                });
            } else {
                // A stack that was cut at its limit, or a wrapper left out: the outer frames are not all there.
                index += 1;
                let mut frames = frames[..1].to_vec();
                frames[0].inlined = false;
                places.push(Place { address, frames });
            }
        }
        places
    }

    /// The stack of a goroutine from its return addresses, one for each physical frame.
    pub fn goroutine_stack(&mut self, stack: &[u64]) -> Vec<Place<'t>> {
        let mut places = Vec::with_capacity(stack.len());
        let mut callee = String::new();
        let mut trapped = false;
        for &pc in stack {
            // Behind a signal the address is that of the faulting instruction itself.
            let address = if trapped { pc } else { self.call_address(pc) };
            let frames = self.frames(address);
            let mut kept = Vec::with_capacity(frames.len());
            for frame in frames.iter() {
                let panics = matches!(
                    callee.as_str(),
                    "runtime.gopanic" | "runtime.sigpanic" | "runtime.panicwrap"
                );
                if frame.func_id != self.wrapper || panics {
                    kept.push(frame.clone());
                }
                callee.clear();
                callee.push_str(&frame.function);
            }
            trapped = callee == "runtime.sigpanic";
            // One place for each address, if without frames: callers pair them.
            places.push(Place { address, frames: kept });
        }
        places
    }
}

/// A function of the runtime's own, as tracebacks and profiles hide it above the program's functions.
pub fn is_runtime(function: &str) -> bool {
    function.starts_with("runtime.") || function.starts_with("internal/runtime/")
}
