//! Where control flows from an instruction, without regard to what it computes.
//!
//! Shared by allocator detection (does this wrapper always reach `malloc`?) and probe placement (where does this
//! function return?). Invariant: a walk over code is bounded by the caller, and undecodable bytes are [`Flow::Stop`].

mod x86_64;

pub use x86_64::ARGUMENTS;

use crate::model::ElfAddress;
use crate::object::image::{ElfImage, Machine, SlotTarget};

/// Where a jump or call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To this address.
    Address(ElfAddress),
    /// To the address stored in this slot.
    Slot(ElfAddress),
    /// Computed at run time.
    Computed,
}

/// What follows an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The next instruction.
    Next,
    /// A call, then the next instruction unless the callee never returns.
    Call(Target),
    /// A jump.
    Jump(Target),
    /// Either the target or the next instruction.
    Branch(ElfAddress),
    /// A return to the caller.
    Return,
    /// Nothing: a trap, or bytes that are no instruction.
    Stop,
}

/// A test of the first argument against zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NullTest {
    /// Sets the flags by the first argument (`test rdi, rdi`).
    Tests,
    /// A branch taken when the last tested value is zero.
    TakenIfZero,
    /// A branch taken when it is not.
    TakenIfNonZero,
    /// Neither.
    None,
}

/// One decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its address.
    pub address: ElfAddress,
    /// Its bytes.
    pub len: u8,
    /// What follows.
    pub flow: Flow,
    /// Part of a NULL test of the first argument.
    pub null_test: NullTest,
}

impl Step {
    /// The address behind it.
    pub fn next(&self) -> ElfAddress {
        ElfAddress(self.address.0.wrapping_add(self.len.into()))
    }
}

/// Whether instructions of this architecture can be decoded.
pub fn can_decode(machine: Machine) -> bool {
    machine == Machine::X86_64
}

/// Reads instructions of one image, with a window over its bytes.
#[derive(Debug)]
pub struct CodeReader<'a> {
    image: &'a ElfImage,
    window: Vec<u8>,
    start: u64,
}

/// The function that a call or jump ends in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Callee {
    /// In the same file.
    Local(ElfAddress),
    /// Whichever definition of this symbol wins.
    Symbol(Vec<u8>),
    /// Not known before run time.
    Unknown,
}

impl<'a> CodeReader<'a> {
    /// Bytes read at once: most functions of interest fit.
    const WINDOW: usize = 4096;
    /// Longest instruction.
    const LONGEST: usize = 15;

    /// Nothing is read yet.
    pub fn new(image: &'a ElfImage) -> Self {
        Self {
            image,
            window: Vec::new(),
            start: 0,
        }
    }

    /// The image.
    pub fn image(&self) -> &'a ElfImage {
        self.image
    }

    /// Up to 15 bytes of code at an address; empty outside of code.
    pub fn bytes(&mut self, address: ElfAddress) -> &[u8] {
        let inside = |start: u64, len: usize| address.0.checked_sub(start).is_some_and(|d| d < len as u64);
        let distance = address.0.wrapping_sub(self.start) as usize;
        if !inside(self.start, self.window.len()) || self.window.len() - distance < Self::LONGEST {
            let code = self.image.is_code(address);
            self.window = if code {
                self.image.bytes_at(address, Self::WINDOW)
            } else {
                Vec::new()
            };
            self.start = address.0;
        }
        let distance = address.0.wrapping_sub(self.start) as usize;
        let rest = self.window.get(distance..).unwrap_or(&[]);
        &rest[..rest.len().min(Self::LONGEST)]
    }

    /// Decodes the instruction at an address.
    pub fn step(&mut self, address: ElfAddress) -> Step {
        match self.image.machine() {
            Machine::X86_64 => x86_64::step(self.bytes(address), address),
            Machine::Aarch64 => Step {
                address,
                len: 4,
                flow: Flow::Stop,
                null_test: NullTest::None,
            },
        }
    }

    /// Follows a target through linkage stubs to the function that it ends in.
    pub fn callee(&mut self, target: Target) -> Callee {
        let slot = match target {
            Target::Computed => return Callee::Unknown,
            Target::Slot(slot) => slot,
            Target::Address(address) => match self.stub_slot(address) {
                Some(slot) => slot,
                None if self.image.is_code(address) => return Callee::Local(address),
                None => return Callee::Unknown,
            },
        };
        match self.image.slot_target(slot) {
            SlotTarget::Symbol(name) => Callee::Symbol(name),
            SlotTarget::Local(address) => Callee::Local(address),
            SlotTarget::Unknown => Callee::Unknown,
        }
    }

    /// The slot of a linkage stub: nothing but (a landing pad and) a jump through it.
    fn stub_slot(&mut self, address: ElfAddress) -> Option<ElfAddress> {
        let mut at = address;
        for _ in 0..2 {
            let step = self.step(at);
            match step.flow {
                Flow::Jump(Target::Slot(slot)) => return Some(slot),
                Flow::Next if x86_64::is_landing_pad(self.bytes(at)) => at = step.next(),
                _ => return None,
            }
        }
        None
    }
}
