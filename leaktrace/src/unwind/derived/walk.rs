//! Follows the stack along all ways through functions.
//!
//! Each function is walked by itself, from its first instruction. What lies behind a call that never returns is another
//! function's: behind a call of one that is walked here, the walk goes on only when that one is known to return, behind
//! one of another file it ends, and what lies behind any other call counts only if a return can be reached from there, with
//! nothing but the return address on the stack. A function that makes a call with a stack that is not aligned as the ABI
//! wants it has run into another one, and is refused.
//! Invariant: no more than [`MAX_STEPS`] instructions are followed, over all functions and as often as they are.

use std::collections::{HashMap, HashSet};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use super::state::{ENTRY_HEIGHT, State};
use super::tables;

/// Most instructions that are followed: ten times what musl has. A function counts as some, and so does an entry of a table.
pub(super) const MAX_STEPS: usize = 1 << 20;
/// What a function counts as, for what is kept of each.
const STEPS_A_FUNCTION: usize = 8;
/// Instructions before a jump that are searched for its table.
const RECENT: usize = 24;
/// Longest padding behind a call.
const MAX_PADDING: usize = 8;

/// Bytes of the file by address.
pub(super) trait Bytes {
    /// Up to `max` bytes of code from an address on; none outside of the code that is followed.
    fn code(&self, address: u64, max: usize) -> &[u8];
    /// `len` bytes from an address on, of anything that the file holds.
    fn data(&self, address: u64, len: usize) -> Option<&[u8]>;
}

/// The budget is spent.
#[derive(Debug)]
pub(super) struct TooMuch;

#[derive(Default)]
struct Function {
    places: HashMap<u64, Place>,
    /// Some way leads back to the caller.
    returns: bool,
    /// It is no function, or does what cannot be followed.
    refused: bool,
    /// Only an address points to it: it may be a label.
    doubtful: bool,
    /// It has a return, or a call, with the stack as the ABI wants it.
    shown: bool,
    /// From unproven instructions to those behind them.
    edges: Vec<(u64, u64)>,
    /// Where it is left, back to the caller.
    exits: Vec<u64>,
}

/// One instruction of a function.
#[derive(Clone, Copy)]
struct Place {
    state: State,
    len: u8,
    /// All ways to it lead over a call that may never return.
    unproven: bool,
}

/// A way that is still to be followed.
#[derive(Clone, Copy)]
struct Way {
    function: u64,
    at: u64,
    state: State,
    unproven: bool,
}

/// Who goes on when a function returns.
enum Waiting {
    /// A function that called it.
    Call(Way),
    /// A function that jumped to it at its end.
    Tail(u64),
}

pub(super) struct Walker<'a, B> {
    bytes: &'a B,
    imports: bool,
    starts: HashSet<u64>,
    functions: HashMap<u64, Function>,
    waiting: HashMap<u64, Vec<Waiting>>,
    pending: Vec<Way>,
    info: InstructionInfoFactory,
    steps: usize,
    /// Where signal trampolines begin, and their lengths.
    pub trampolines: Vec<(u64, u8)>,
}

impl<'a, B: Bytes> Walker<'a, B> {
    /// `imports`: the file calls functions of other files, of which nothing is known.
    pub fn new(bytes: &'a B, imports: bool) -> Self {
        Self {
            bytes,
            imports,
            starts: HashSet::new(),
            functions: HashMap::new(),
            waiting: HashMap::new(),
            pending: Vec::new(),
            info: InstructionInfoFactory::new(),
            steps: 0,
            trampolines: Vec::new(),
        }
    }

    /// Says where functions begin, walked or not: another one ends there.
    pub fn know(&mut self, starts: &[u64]) {
        self.starts.extend(starts);
    }

    /// Walks the functions that begin at these addresses, and those that they call.
    pub fn walk(&mut self, starts: &[u64], doubtful: bool) -> Result<(), TooMuch> {
        self.know(starts);
        for start in starts {
            self.begin(*start, doubtful);
            if self.steps > MAX_STEPS {
                return Err(TooMuch);
            }
        }
        while let Some(way) = self.pending.pop() {
            self.follow(way)?;
        }
        Ok(())
    }

    /// All addresses of instructions that were followed, as part of any function.
    pub fn reached(&self) -> HashSet<u64> {
        let functions = self.functions.values();
        functions.flat_map(|function| function.places.keys().copied()).collect()
    }

    /// All instructions that belong to functions: address, length, state. One that functions share is there for each.
    pub fn states(&self) -> Vec<(u64, u8, State)> {
        let mut states = Vec::new();
        for function in self.functions.values() {
            if function.refused || (function.doubtful && !function.shown) {
                continue;
            }
            let proven = function.proven();
            let places = function.places.iter();
            let places = places.filter(|(at, place)| !place.unproven || proven.contains(at));
            states.extend(places.map(|(at, place)| (*at, place.len, place.state)));
        }
        states
    }

    fn begin(&mut self, start: u64, doubtful: bool) {
        if !self.functions.contains_key(&start) {
            self.starts.insert(start);
            let function = Function {
                doubtful,
                ..Function::default()
            };
            self.functions.insert(start, function);
            self.steps += STEPS_A_FUNCTION;
            self.pending.push(Way {
                function: start,
                at: start,
                state: State::ENTRY,
                unproven: false,
            });
        }
    }

    /// Straight on from an instruction, until control does not go there or was there before in the same state.
    fn follow(&mut self, mut way: Way) -> Result<(), TooMuch> {
        let mut recent: Vec<Instruction> = Vec::new();
        loop {
            let Some(function) = self
                .functions
                .get_mut(&way.function)
                .filter(|function| !function.refused)
            else {
                return Ok(());
            };
            if let Some(known) = function.places.get(&way.at) {
                way.state = way.state.meet(known.state);
                way.unproven &= known.unproven;
                if (way.state, way.unproven) == (known.state, known.unproven) {
                    return Ok(());
                }
            }
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(TooMuch);
            }
            let Some(instruction) = decode(self.bytes.code(way.at, 15), way.at) else {
                function.refused |= !way.unproven;
                return Ok(());
            };
            if let Some(len) = trampoline(self.bytes.code(way.at, 16)) {
                self.trampolines.push((way.at, len));
                return Ok(());
            }
            let place = Place {
                state: way.state,
                len: instruction.len() as u8,
                unproven: way.unproven,
            };
            function.places.insert(way.at, place);
            recent.push(instruction);
            let Some(unproven) = self.goes_on(way, &recent) else {
                return Ok(());
            };
            let is_call = matches!(
                instruction.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall
            );
            let from = way;
            way.unproven = unproven;
            way.at = instruction.next_ip();
            if !is_call {
                way.state = way.state.behind(&instruction, &mut self.info);
            }
            if way.at != way.function && self.starts.contains(&way.at) && way.state.height == Some(ENTRY_HEIGHT) {
                // One function runs on into the next.
                self.jump(from, way.at, way.state);
                return Ok(());
            }
            self.note_edge(from, way.at);
            if recent.len() == RECENT {
                recent.remove(0);
            }
        }
    }

    /// Whether control runs on behind the last of these instructions, which is at the end of `way`, and if so whether that
    /// is unproven. Begins all other ways from there.
    fn goes_on(&mut self, way: Way, recent: &[Instruction]) -> Option<bool> {
        let instruction = recent.last()?;
        match instruction.flow_control() {
            FlowControl::Next | FlowControl::XbeginXabortXend => {
                (instruction.mnemonic() != Mnemonic::Hlt).then_some(way.unproven)
            }
            FlowControl::Call | FlowControl::IndirectCall => self.call(way, instruction),
            FlowControl::ConditionalBranch => {
                self.jump(way, instruction.near_branch_target(), way.state);
                Some(way.unproven)
            }
            FlowControl::UnconditionalBranch => {
                self.jump(way, instruction.near_branch_target(), way.state);
                None
            }
            FlowControl::IndirectBranch => {
                self.computed_jump(way, recent);
                None
            }
            FlowControl::Return => {
                self.leave(way);
                None
            }
            FlowControl::Interrupt | FlowControl::Exception => None,
        }
    }

    fn leave(&mut self, way: Way) {
        let Some(function) = self.functions.get_mut(&way.function) else {
            return;
        };
        match way.state.height {
            Some(ENTRY_HEIGHT) => {
                function.shown = true;
                function.exits.push(way.at);
                self.returns(way.function);
            }
            // To a place that it has put there itself, or nothing of this is true.
            None if !function.doubtful => self.returns(way.function),
            _ => function.refused |= !way.unproven,
        }
    }

    fn note_edge(&mut self, from: Way, to: u64) {
        if from.unproven
            && let Some(function) = self.functions.get_mut(&from.function)
        {
            function.edges.push((from.at, to));
        }
    }

    /// Whether control runs on behind a call now, proven or not; else it waits for the callee.
    fn call(&mut self, way: Way, instruction: &Instruction) -> Option<bool> {
        // System calls are calls here, without a target.
        let near = instruction.op_count() == 1 && instruction.op0_kind() == OpKind::NearBranch64;
        if instruction.flow_control() == FlowControl::Call && !near {
            return Some(way.unproven);
        }
        let next = instruction.next_ip();
        let target = instruction.near_branch_target();
        let function = self.functions.get_mut(&way.function)?;
        let aligned = way.state.height.is_none_or(|height| height % 16 == 0);
        function.shown |= way.state.height.is_some() && aligned;
        // Code that asks for its own address takes it off the stack somehow. And a call that is not aligned is one of
        // another function's, behind a call that never returns here but can elsewhere (`__builtin_unreachable`).
        if (near && target == next) || !aligned {
            function.refused |= !way.unproven;
            return None;
        }
        if self.starts.contains(&self.behind_padding(next)) {
            return None;
        }
        if !near {
            return Some(true);
        }
        if self.bytes.code(target, 1).is_empty() {
            return (!self.imports).then_some(true);
        }
        self.begin(target, false);
        if self.functions.get(&target).is_some_and(|callee| callee.returns) {
            return Some(way.unproven);
        }
        let behind = Way { at: next, ..way };
        self.note_edge(way, next);
        self.waiting.entry(target).or_default().push(Waiting::Call(behind));
        None
    }

    fn behind_padding(&self, from: u64) -> u64 {
        let mut at = from;
        for _ in 0..MAX_PADDING {
            match decode(self.bytes.code(at, 15), at) {
                Some(instruction) if is_padding(&instruction) => at = instruction.next_ip(),
                _ => break,
            }
        }
        at
    }

    fn jump(&mut self, way: Way, target: u64, state: State) {
        let start = way.function;
        let at_end = state.height == Some(ENTRY_HEIGHT);
        let outside = self.bytes.code(target, 1).is_empty();
        if at_end && (outside || (target != start && self.starts.contains(&target))) {
            if let Some(function) = self.functions.get_mut(&start) {
                function.exits.push(way.at);
            }
            if outside || self.functions.get(&target).is_some_and(|callee| callee.returns) {
                self.returns(start);
            } else {
                self.waiting.entry(target).or_default().push(Waiting::Tail(start));
            }
        } else if !outside {
            self.note_edge(way, target);
            self.pending.push(Way {
                at: target,
                state,
                ..way
            });
        }
    }

    fn computed_jump(&mut self, way: Way, recent: &[Instruction]) {
        // A call of another function, made last; or a table of the function's own places.
        match tables::targets(recent, self.bytes) {
            Some(targets) => {
                self.steps += targets.len();
                for target in targets {
                    self.note_edge(way, target);
                    self.pending.push(Way { at: target, ..way });
                }
            }
            // Where the stack is another's (longjmp) it does not return from this function.
            None if way.state.height.is_some() => {
                if way.state.height == Some(ENTRY_HEIGHT)
                    && let Some(function) = self.functions.get_mut(&way.function)
                {
                    function.exits.push(way.at);
                }
                self.returns(way.function);
            }
            None => {}
        }
    }

    /// Notes that a function returns, and lets all go on that wait for that.
    fn returns(&mut self, start: u64) {
        let mut returning = vec![start];
        while let Some(start) = returning.pop() {
            match self.functions.get_mut(&start) {
                Some(function) if !function.returns => function.returns = true,
                _ => continue,
            }
            for waiting in self.waiting.remove(&start).unwrap_or_default() {
                match waiting {
                    Waiting::Call(way) => self.pending.push(way),
                    Waiting::Tail(caller) => returning.push(caller),
                }
            }
        }
    }
}

impl Function {
    /// Unproven instructions from which it can be left.
    fn proven(&self) -> HashSet<u64> {
        let mut before: HashMap<u64, Vec<u64>> = HashMap::new();
        let mut pending = self.exits.clone();
        for (from, to) in &self.edges {
            before.entry(*to).or_default().push(*from);
            if self.places.get(to).is_some_and(|place| !place.unproven) {
                pending.push(*to);
            }
        }
        let mut proven = HashSet::new();
        while let Some(at) = pending.pop() {
            if proven.insert(at) {
                pending.extend(before.get(&at).into_iter().flatten());
            }
        }
        proven
    }
}

/// The instruction that bytes begin with.
pub(super) fn decode(bytes: &[u8], at: u64) -> Option<Instruction> {
    let instruction = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// What compilers and linkers put between functions.
pub(super) fn is_padding(instruction: &Instruction) -> bool {
    let same = instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_register() == instruction.op1_register()
        && instruction.op0_register() != Register::None;
    match instruction.mnemonic() {
        Mnemonic::Nop | Mnemonic::Int3 => true,
        Mnemonic::Xchg => same,
        _ => false,
    }
}

/// Length of the code that every signal handler returns to: `rt_sigreturn` is system call 15.
fn trampoline(bytes: &[u8]) -> Option<u8> {
    const FORMS: [&[u8]; 2] = [
        &[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05],
        &[0xb8, 15, 0, 0, 0, 0x0f, 0x05],
    ];
    let form = FORMS.iter().find(|form| bytes.starts_with(form))?;
    Some(form.len() as u8)
}
