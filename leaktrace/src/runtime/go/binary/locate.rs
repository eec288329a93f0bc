//! Finds the runtime's global variables by decoding functions that are known to use them.
//!
//! A stripped binary has no symbols for variables, but its functions have names, and what they do is fixed: the first
//! 64-bit load of `mProf_FlushLocked` is `mbuckets`, and so on. Pure: code in, addresses out. Whether an address is the
//! right one is checked by the readers' self-checks.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::pclntab::PclnTable;

/// Longest function that is decoded; `gcMarkTermination` is under 6 KB.
const MAX_CODE: u64 = 64 << 10;

/// Addresses of the globals that the readers use, in the process; `None` for what was not found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Globals {
    /// `mbuckets`: head of the list of heap buckets.
    pub buckets: Option<u64>,
    /// `mProfCycle`: cycle number and a flag.
    pub profile_cycle: Option<u64>,
    /// `MemProfileRate`.
    pub profile_rate: Option<u64>,
    /// `allgptr`: array of all goroutines.
    pub goroutines: Option<u64>,
    /// `allglen`: its length.
    pub goroutine_count: Option<u64>,
    /// `gcController`.
    pub controller: Option<u64>,
    /// `mheap_`.
    pub heap: Option<u64>,
    /// `memstats`.
    pub stats: Option<u64>,
    /// Argument of the first `semacquire` in `gcStart`: `work.startSema`.
    pub work_start_sema: Option<u64>,
    /// `waitReasonStrings`.
    pub wait_reasons: Option<u64>,
}

impl Globals {
    /// Names of the symbols, for binaries that have a symbol table. `startSema` has none of its own: see
    /// [`Globals::fill_from_symbols`].
    pub const SYMBOLS: [&str; 9] = [
        "runtime.mbuckets",
        "runtime.mProfCycle",
        "runtime.MemProfileRate",
        "runtime.allgptr",
        "runtime.allglen",
        "runtime.gcController",
        "runtime.mheap_",
        "runtime.memstats",
        "runtime.work",
    ];

    /// Takes what was not found from a symbol table. `start_sema` is the offset of that field in `work`.
    pub fn fill_from_symbols(&mut self, address: impl Fn(&str) -> Option<u64>, start_sema: u64) {
        let slots = [
            &mut self.buckets,
            &mut self.profile_cycle,
            &mut self.profile_rate,
            &mut self.goroutines,
            &mut self.goroutine_count,
            &mut self.controller,
            &mut self.heap,
            &mut self.stats,
            &mut self.work_start_sema,
        ];
        for (slot, name) in slots.into_iter().zip(Self::SYMBOLS) {
            let add = if name == "runtime.work" { start_sema } else { 0 };
            *slot = slot.or_else(|| address(name).map(|address| address + add));
        }
    }

    /// All that a reader cannot do without was found.
    pub fn is_complete(&self) -> bool {
        [
            self.buckets,
            self.profile_cycle,
            self.profile_rate,
            self.goroutines,
            self.goroutine_count,
            self.controller,
            self.heap,
            self.stats,
            self.work_start_sema,
        ]
        .iter()
        .all(Option::is_some)
    }
}

/// A decoded function.
struct Code<'t> {
    instructions: Vec<Instruction>,
    table: &'t PclnTable,
}

impl Code<'_> {
    /// The function that a direct call goes to.
    fn callee(&self, instruction: &Instruction) -> Option<String> {
        if instruction.flow_control() != FlowControl::Call {
            return None;
        }
        let target = instruction.near_branch_target();
        let function = self
            .table
            .function_at(target)
            .filter(|function| function.entry == target)?;
        Some(self.table.name(&function).into_owned())
    }

    fn calls(&self, instruction: &Instruction, name: &str) -> bool {
        self.callee(instruction).is_some_and(|callee| callee == name)
    }

    /// The first plain load of a register of `size` bytes from a fixed address.
    fn first_load(&self, size: usize) -> Option<u64> {
        self.instructions.iter().find_map(|instruction| load(instruction, size))
    }

    /// The last address that went into RAX by LEA before a call whose target `accept`s.
    fn receiver(&self, accept: impl Fn(&str) -> bool) -> Option<u64> {
        let mut last = None;
        for instruction in &self.instructions {
            if let Some((Register::RAX, address)) = load_address(instruction) {
                last = Some(address);
            } else if instruction.flow_control() == FlowControl::Call {
                if let (Some(address), Some(name)) = (last, self.callee(instruction))
                    && accept(&name)
                {
                    return Some(address);
                }
                last = None;
            }
        }
        None
    }

    /// Index of the first direct call of this function.
    fn call_of(&self, name: &str) -> Option<usize> {
        self.instructions
            .iter()
            .position(|instruction| self.calls(instruction, name))
    }
}

fn load(instruction: &Instruction, size: usize) -> Option<u64> {
    let plain = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().size() == size
        && instruction.is_ip_rel_memory_operand();
    plain.then(|| instruction.ip_rel_memory_address())
}

fn load_address(instruction: &Instruction) -> Option<(Register, u64)> {
    let fixed = instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand();
    fixed.then(|| (instruction.op0_register(), instruction.ip_rel_memory_address()))
}

/// `allgptr` and `allglen`, from `allgadd`.
fn goroutine_list(code: &Code<'_>) -> (Option<u64>, Option<u64>) {
    let instructions = &code.instructions;
    let before = |index: usize, reach: usize| instructions[index.saturating_sub(reach)..index].iter().rev();
    // atomicstorep(&allgptr, …) calls atomicwb(&allgptr, …) when the write barrier is on.
    let pointer = code
        .call_of("runtime.atomicwb")
        .and_then(|index| before(index, 6).find_map(load_address))
        .map(|(_, address)| address);
    // Both atomic stores are XCHG; allglen's is the last one.
    let mut length = None;
    for (index, instruction) in instructions.iter().enumerate() {
        if instruction.mnemonic() != Mnemonic::Xchg {
            continue;
        }
        let target = if instruction.is_ip_rel_memory_operand() {
            Some(instruction.ip_rel_memory_address())
        } else {
            let base = instruction.memory_base();
            before(index, 8)
                .filter_map(load_address)
                .find(|(register, _)| *register == base)
                .map(|(_, at)| at)
        };
        length = target.filter(|&address| Some(address) != pointer).or(length);
    }
    (pointer, length)
}

/// Finds the globals. `code` gives the bytes of the function between two addresses.
pub fn globals(table: &PclnTable, code: impl Fn(u64, u64) -> Option<Vec<u8>>) -> Globals {
    const NAMES: [&str; 16] = [
        "runtime.mProf_FlushLocked",
        "runtime.mProf_Flush",
        "runtime.profilealloc",
        "runtime.allgadd",
        "runtime.gcinit",
        "runtime.gcControllerCommit",
        "runtime.gcStart",
        "runtime.gcMarkTermination",
        "runtime.gcMarkDone",
        "runtime.mallocinit",
        "runtime.(*mcache).refill",
        "runtime.(*mcache).releaseAll",
        "runtime.(*mcache).allocLarge",
        "runtime.(*mcentral).grow",
        "runtime.waitReason.String",
        "runtime.schedinit",
    ];
    let functions = table.find_by_name(NAMES);
    let decode = |name: &str| -> Option<Code<'_>> {
        let function = functions[NAMES.iter().position(|known| *known == name)?]?;
        let end = function.end.min(function.entry.checked_add(MAX_CODE)?);
        let bytes = code(function.entry, end)?;
        let instructions = Decoder::with_ip(64, &bytes, function.entry, DecoderOptions::NONE)
            .into_iter()
            .collect();
        Some(Code { instructions, table })
    };
    let receiver =
        |callers: &[&str], accept: fn(&str) -> bool| callers.iter().find_map(|caller| decode(caller)?.receiver(accept));
    let (goroutines, goroutine_count) = decode("runtime.allgadd").map_or((None, None), |code| goroutine_list(&code));
    Globals {
        buckets: decode("runtime.mProf_FlushLocked").and_then(|code| code.first_load(8)),
        profile_cycle: decode("runtime.mProf_Flush").and_then(|code| code.first_load(4)),
        profile_rate: decode("runtime.profilealloc").and_then(|code| {
            let end = code.call_of("runtime.fastexprand")?;
            code.instructions[..end]
                .iter()
                .rev()
                .find_map(|instruction| load(instruction, 8))
        }),
        goroutines,
        goroutine_count,
        controller: receiver(
            &[
                "runtime.gcinit",
                "runtime.gcControllerCommit",
                "runtime.gcStart",
                "runtime.gcMarkTermination",
                "runtime.gcMarkDone",
                "runtime.mallocinit",
                "runtime.(*mcache).refill",
            ],
            |name| name.starts_with("runtime.(*gcControllerState)."),
        ),
        heap: receiver(
            &[
                "runtime.mallocinit",
                "runtime.(*mcache).allocLarge",
                "runtime.(*mcentral).grow",
                "runtime.gcMarkTermination",
                "runtime.gcStart",
            ],
            |name| name.starts_with("runtime.(*mheap)."),
        ),
        stats: receiver(
            &[
                "runtime.(*mcache).refill",
                "runtime.(*mcache).releaseAll",
                "runtime.(*mcache).allocLarge",
            ],
            |name| name.starts_with("runtime.(*consistentHeapStats).acquire"),
        ),
        work_start_sema: receiver(&["runtime.gcStart"], |name| {
            matches!(name, "runtime.semacquire" | "runtime.semacquire1")
        }),
        wait_reasons: decode("runtime.waitReason.String")
            // The first one is of "unknown wait reason".
            .and_then(|code| code.instructions.iter().rev().find_map(load_address))
            .map(|(_, address)| address),
    }
}

/// Fixed addresses that `runtime.schedinit` loads from: one of them is `buildVersion`, a string header. Only where
/// there is no build info.
pub fn build_version_candidates(table: &PclnTable, code: impl Fn(u64, u64) -> Option<Vec<u8>>) -> Vec<u64> {
    let [Some(function)] = table.find_by_name(["runtime.schedinit"]) else {
        return Vec::new();
    };
    let Some(bytes) = code(
        function.entry,
        function.end.min(function.entry.saturating_add(MAX_CODE)),
    ) else {
        return Vec::new();
    };
    Decoder::with_ip(64, &bytes, function.entry, DecoderOptions::NONE)
        .into_iter()
        .filter(Instruction::is_ip_rel_memory_operand)
        .map(|instruction| instruction.ip_rel_memory_address())
        .collect()
}
