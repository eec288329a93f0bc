//! What becomes of an entry point's arguments: which functions get them, in which registers, and whose result it returns.
//!
//! Follows values that are moved, spilled and passed on whole; any other computation makes a value unknown. Invariant: a
//! value that is known has come there on every way that was followed, and all ways are, or there is no answer.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedRegister,
};

use crate::allocator::flow::{never_returns, runs_on};
use crate::allocator::partial::code::{Code, Reference};
use crate::model::ElfAddress;
use crate::object::code::{ARGUMENTS, Callee, CodeReader, Flow, Target};

/// Most instructions that are followed, over all ways.
const MAX_STEPS: usize = 20_000;
/// Registers that a call leaves as they are.
const PRESERVED: [Register; 7] = [
    Register::RBX,
    Register::RBP,
    Register::RSP,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// What a register or a place on the stack holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Value {
    Unknown,
    Zero,
    /// The entry point's own, from 1.
    Argument(u8),
    /// A fixed address.
    Address(u64),
    /// What the function at this address returned.
    Result(u64),
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// What each function of the file gets in its argument registers; unknown where calls differ.
    pub calls: BTreeMap<u64, [Value; 6]>,
    /// What is returned, on any way.
    pub returned: BTreeSet<Value>,
    /// The functions that got the first argument on a way to a return, on each way.
    pub given: BTreeSet<Vec<u64>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    at: u64,
    registers: [Value; 16],
    stack: BTreeMap<i64, Value>,
    /// Of the stack pointer, from its value at the entry.
    depth: i64,
    given: BTreeSet<u64>,
}

impl State {
    fn get(&self, register: Register) -> Value {
        index(register).map_or(Value::Unknown, |index| self.registers[index])
    }

    fn set(&mut self, register: Register, value: Value) {
        if let Some(index) = index(register) {
            self.registers[index] = value;
        }
    }

    /// The place on the stack that a memory operand names.
    fn place(&self, instruction: &Instruction) -> Option<i64> {
        let plain = instruction.memory_base() == Register::RSP && instruction.memory_index() == Register::None;
        plain.then(|| {
            self.depth
                .wrapping_add(instruction.memory_displacement64().cast_signed())
        })
    }

    fn store(&mut self, place: i64, value: Value) {
        self.stack.retain(|other, _| (other - place).abs() >= 8);
        if value != Value::Unknown && self.stack.len() < 64 {
            self.stack.insert(place, value);
        }
    }
}

fn index(register: Register) -> Option<usize> {
    register.is_gpr64().then(|| register.number())
}

/// Follows the function at `entry`. `None` if it does what cannot be followed.
pub(super) fn follow(code: &mut Code<'_>, entry: u64) -> Option<Outcome> {
    Walk {
        reader: CodeReader::new(code.image()),
        end: code.function(entry)?.end,
        code,
        entry,
        info: InstructionInfoFactory::new(),
        outcome: Outcome::default(),
        read: BTreeMap::new(),
    }
    .run()
}

struct Walk<'a, 'b> {
    code: &'b mut Code<'a>,
    reader: CodeReader<'a>,
    entry: u64,
    end: u64,
    info: InstructionInfoFactory,
    outcome: Outcome,
    /// Which argument registers a function reads.
    read: BTreeMap<u64, [bool; 6]>,
}

impl Walk<'_, '_> {
    fn run(mut self) -> Option<Outcome> {
        let mut registers = [Value::Unknown; 16];
        for (position, register) in (1..).zip(ARGUMENTS) {
            registers[index(register)?] = Value::Argument(position);
        }
        let mut pending = vec![State {
            at: self.entry,
            registers,
            stack: BTreeMap::new(),
            depth: 0,
            given: BTreeSet::new(),
        }];
        let mut seen = HashSet::new();
        while let Some(mut state) = pending.pop() {
            if !seen.insert(state.clone()) {
                continue;
            }
            if seen.len() > MAX_STEPS {
                return None;
            }
            let step = self.reader.step(ElfAddress(state.at));
            let mut runs = runs_on(self.reader.image(), &step);
            match step.flow {
                Flow::Stop => continue,
                Flow::Return => {
                    self.end_of(&state);
                    continue;
                }
                Flow::Next => self.apply(&mut state)?,
                Flow::Branch(target) => {
                    let mut taken = state.clone();
                    taken.at = target.0;
                    self.jump(taken, &mut pending);
                }
                Flow::Jump(Target::Address(target)) if self.is_inside(target.0) => {
                    state.at = target.0;
                    pending.push(state);
                    continue;
                }
                Flow::Jump(target) => {
                    if self.call(&mut state, target) {
                        self.end_of(&state);
                    }
                    continue;
                }
                Flow::Call(target) => runs &= self.call(&mut state, target),
            }
            if runs {
                state.at = step.next().0;
                pending.push(state);
            }
        }
        Some(self.outcome)
    }

    fn is_inside(&self, address: u64) -> bool {
        (self.entry..self.end).contains(&address)
    }

    /// A branch: inside the function, or a call made last.
    fn jump(&mut self, mut state: State, pending: &mut Vec<State>) {
        if self.is_inside(state.at) {
            pending.push(state);
        } else {
            let target = Target::Address(ElfAddress(state.at));
            if self.call(&mut state, target) {
                self.end_of(&state);
            }
        }
    }

    fn end_of(&mut self, state: &State) {
        self.outcome.returned.insert(state.get(Register::RAX));
        self.outcome.given.insert(state.given.iter().copied().collect());
    }

    /// A call. Returns whether it comes back.
    fn call(&mut self, state: &mut State, target: Target) -> bool {
        let arguments = ARGUMENTS.map(|register| state.get(register));
        let mut result = Value::Unknown;
        match self.reader.callee(target) {
            Callee::Symbol(name) if never_returns(&name) => return false,
            // They return their first argument.
            Callee::Symbol(name) if matches!(&name[..], b"memset" | b"memcpy" | b"memmove") => result = arguments[0],
            Callee::Local(function) if self.code.is_own(function.0) => {
                result = Value::Result(function.0);
                let arguments = self.read_by(function.0, arguments);
                if arguments.contains(&Value::Argument(1)) {
                    state.given.insert(function.0);
                }
                let known = self.outcome.calls.entry(function.0).or_insert(arguments);
                for (known, now) in known.iter_mut().zip(arguments) {
                    if *known != now {
                        *known = Value::Unknown;
                    }
                }
            }
            _ => {}
        }
        for (number, value) in state.registers.iter_mut().enumerate() {
            if !PRESERVED.iter().any(|register| register.number() == number) {
                *value = Value::Unknown;
            }
        }
        state.set(Register::RAX, result);
        true
    }

    /// The arguments that a function reads: what its caller left in other registers is none.
    fn read_by(&mut self, function: u64, arguments: [Value; 6]) -> [Value; 6] {
        let read = match self.read.get(&function) {
            Some(read) => *read,
            None => {
                let read = ARGUMENTS.map(|register| self.reads(function, register, 0));
                self.read.insert(function, read);
                read
            }
        };
        let mut arguments = arguments;
        for (argument, read) in arguments.iter_mut().zip(read) {
            if !read {
                *argument = Value::Unknown;
            }
        }
        arguments
    }

    /// Whether some way through a function reads a register before it writes it. What it passes on to functions outside
    /// of the program's own crates is not followed.
    fn reads(&mut self, function: u64, register: Register, depth: usize) -> bool {
        let mut pending = vec![function];
        let mut seen = HashSet::new();
        while let Some(at) = pending.pop() {
            if !seen.insert(at) {
                continue;
            }
            if seen.len() > MAX_STEPS {
                return true;
            }
            let step = self.reader.step(ElfAddress(at));
            let instruction = self.decode(at);
            let cleared = matches!(instruction.mnemonic(), Mnemonic::Xor | Mnemonic::Sub)
                && instruction.op1_kind() == OpKind::Register
                && instruction.op0_register() == instruction.op1_register();
            let mut written = false;
            if !matches!(step.flow, Flow::Call(_)) {
                for used in self.info.info(&instruction).used_registers() {
                    if used.register().full_register() == register {
                        written |= used.access() == OpAccess::Write;
                        if !cleared && used.access() != OpAccess::Write {
                            return true;
                        }
                        written |= cleared;
                    }
                }
            }
            if written {
                continue;
            }
            match step.flow {
                Flow::Stop | Flow::Return => continue,
                Flow::Next => {}
                Flow::Branch(target) => pending.push(target.0),
                Flow::Call(target) | Flow::Jump(target) => {
                    let callee = self.reader.callee(target);
                    if let (Flow::Jump(_), Callee::Local(address)) = (step.flow, &callee)
                        && !self.code.is_own(address.0)
                    {
                        pending.push(address.0);
                    }
                    if let Callee::Local(address) = callee
                        && self.code.is_own(address.0)
                        && (depth == 3 || self.reads(address.0, register, depth + 1))
                    {
                        return true;
                    }
                    // A call writes all argument registers.
                    continue;
                }
            }
            if runs_on(self.reader.image(), &step) {
                pending.push(step.next().0);
            }
        }
        false
    }

    fn decode(&mut self, at: u64) -> Instruction {
        Decoder::with_ip(64, self.reader.bytes(ElfAddress(at)), at, DecoderOptions::NONE).decode()
    }

    /// An instruction that is no branch. `None` if the stack pointer is lost.
    fn apply(&mut self, state: &mut State) -> Option<()> {
        let instruction = self.decode(state.at);
        let to = instruction.op0_register();
        let from_register = instruction.op1_kind() == OpKind::Register;
        match instruction.mnemonic() {
            Mnemonic::Push => {
                state.depth -= 8;
                let value = match instruction.op0_kind() {
                    OpKind::Register => state.get(to),
                    _ => Value::Unknown,
                };
                state.store(state.depth, value);
                return Some(());
            }
            Mnemonic::Pop if index(to).is_some() => {
                let value = state.stack.get(&state.depth).copied().unwrap_or(Value::Unknown);
                state.set(to, value);
                state.depth += 8;
                return Some(());
            }
            Mnemonic::Sub | Mnemonic::Add if to == Register::RSP => {
                let immediate = !from_register && instruction.op1_kind() != OpKind::Memory;
                let distance = immediate.then(|| instruction.immediate(1).cast_signed())?;
                let grows = instruction.mnemonic() == Mnemonic::Add;
                state.depth = state
                    .depth
                    .wrapping_add(if grows { distance } else { distance.wrapping_neg() });
                return Some(());
            }
            Mnemonic::Xor if from_register && to == instruction.op1_register() && to.is_gpr() => {
                state.set(to.full_register(), Value::Zero);
                return Some(());
            }
            Mnemonic::Mov if from_register && instruction.op0_kind() == OpKind::Memory => {
                if let Some(place) = state.place(&instruction) {
                    state.store(place, state.get(instruction.op1_register()));
                }
                return Some(());
            }
            _ => {}
        }
        let moved = match instruction.mnemonic() {
            Mnemonic::Mov if from_register => state.get(instruction.op1_register()),
            Mnemonic::Mov if instruction.op1_kind() == OpKind::Memory && state.place(&instruction).is_some() => {
                let place = state.place(&instruction)?;
                state.stack.get(&place).copied().unwrap_or(Value::Unknown)
            }
            Mnemonic::Mov | Mnemonic::Lea => match self.code.references(&instruction)[..] {
                [Reference::Address(address)] => Value::Address(address),
                _ => Value::Unknown,
            },
            _ => Value::Unknown,
        };
        let writes = |used: &&UsedRegister| !matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
        let info = self.info.info(&instruction);
        for used in info.used_registers().iter().filter(writes) {
            let register = used.register().full_register();
            if register == Register::RSP {
                return None;
            }
            // A part of a register, or half of it with the rest cleared, holds no pointer; but the address of a fixed
            // program fits.
            let whole = used.register() == register || matches!(moved, Value::Address(_));
            let moves = matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Lea);
            state.set(register, if whole && moves { moved } else { Value::Unknown });
        }
        if let Some(place) = state.place(&instruction)
            && info.used_memory().iter().any(|used| used.access() != OpAccess::Read)
        {
            let wide = instruction.memory_size().size() as i64;
            state
                .stack
                .retain(|other, _| *other + 8 <= place || *other >= place + wide.max(8));
        }
        Some(())
    }
}
