//! Whether the entry points of a program's own allocator see all of its calls, or were inlined into some of their callers.
//!
//! A Rust program's `#[global_allocator]` is compiled with the program: its library calls `__rust_alloc`, the program's own
//! crates may have the allocator's code inlined. With one side of the calls seen and the other not, blocks look leaked that
//! are freed. Symbols do not show that, code does. Whoever allocates from the allocator has to get at what it keeps, its
//! variables, directly or by a function that does: so all code of the file is searched for references to them.
//!
//! - Nobody but the entry points and what stands behind them refers to them: the entry points see all ([`Coverage::Whole`]).
//! - Others do, but call the same functions as the entry points, which do all the work: these are hooked in their place
//!   ([`Coverage::Behind`]). How they get their arguments is found by following those of the entry points.
//! - Anything else is left out, with the reason ([`Coverage::Unknown`]).
//!
//! Invariant: in doubt it is left out. Calls by function pointers that were made before are not seen here, and neither are
//! functions of Rust's library that were compiled for the allocator's types.

mod arguments;
mod code;
mod names;

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use leaktrace_common::signature::{Op, Signature};

use self::arguments::Value;
use self::code::{Code, Function, Reference, Use};
use crate::model::ElfAddress;
use crate::object::code::ARGUMENTS;
use crate::object::image::ElfImage;

/// An entry point of an allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it begins.
    pub address: ElfAddress,
    /// Its arguments.
    pub signature: Signature,
}

/// A function that does an entry point's work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Implementation {
    /// Its symbol.
    pub symbol: String,
    /// Where it begins.
    pub address: ElfAddress,
    /// Its size, with what pads it.
    pub size: u64,
    /// Its arguments.
    pub signature: Signature,
}

/// What the entry points see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// All calls.
    Whole,
    /// A part of them. These functions see all.
    Behind {
        /// To be hooked in place of the entry points.
        functions: Vec<Implementation>,
        /// Who calls them besides.
        by: String,
    },
    /// Not known, or a part: says why.
    Unknown(String),
}

/// Searches an image whose allocator has these entry points.
pub fn examine(image: &ElfImage, entries: &[Entry]) -> Coverage {
    search(image, entries).unwrap_or_else(Coverage::Unknown)
}

fn search(image: &ElfImage, entries: &[Entry]) -> Result<Coverage, String> {
    let roots: BTreeSet<u64> = entries.iter().map(|entry| entry.address.0).collect();
    let mut code = Code::read(image, &roots)?;
    let mut reached = code.reach(&roots)?;
    let mut stateful = BTreeSet::new();
    for function in reached.functions.clone() {
        if code.reach(&BTreeSet::from([function]))?.touches() {
            stateful.insert(function);
        }
    }
    for entry in entries {
        let (is_alloc, is_free) = (is(entry.signature, Op::Alloc), is(entry.signature, Op::Free));
        if (is_alloc || is_free) && !stateful.contains(&entry.address.0) {
            let what = if is_free { "free" } else { "allocation" };
            return Err(format!(
                "its {what} function keeps nothing in this file's variables: where it was inlined cannot be known"
            ));
        }
    }
    if reached.of_thread_unknown {
        return Err("it keeps its state in thread-local variables: where it was inlined cannot be known".into());
    }
    let inside = reached.functions.clone();
    reached
        .functions
        .retain(|function| stateful.contains(function) && !roots.contains(function));
    let uses = code.uses(&reached)?;
    let users: BTreeSet<u64> = uses
        .iter()
        .map(|place| place.by.start)
        .filter(|user| !inside.contains(user))
        .collect();
    let Some(first) = users.first() else {
        return Ok(Coverage::Whole);
    };
    let named = users.iter().find_map(|user| names::symbol_at(image, *user));
    let named = named.map_or_else(|| format!("the code at {first:#x}"), |symbol| names::shown(&symbol));
    let by = match users.len() {
        1 => format!("into `{named}`"),
        count => format!("into {count} functions, such as `{named}`"),
    };
    match behind(&mut code, entries) {
        Ok(functions) => Ok(Coverage::Behind { functions, by }),
        Err(why) => Err(format!(
            "partly inlined {by}: blocks would look leaked, or freed; and {why}"
        )),
    }
}

/// A symbol of a Rust program as it is shown.
pub fn shown(symbol: &str) -> String {
    names::shown(symbol)
}

fn is(signature: Signature, op: Op) -> bool {
    signature.op() == op as u8
}

/// The functions behind the entry points that do all of the work, if there are such.
fn behind(code: &mut Code<'_>, entries: &[Entry]) -> Result<Vec<Implementation>, String> {
    let mut found: BTreeMap<u64, Signature> = BTreeMap::new();
    let mut passed = BTreeSet::new();
    for entry in entries {
        let unclear = || "what stands behind them is not a function for each".to_owned();
        let outcome = arguments::follow(code, entry.address.0).ok_or_else(unclear)?;
        let workers = workers(&outcome, entry.signature).ok_or_else(unclear)?;
        for (function, signature) in workers {
            if *found.entry(function).or_insert(signature) != signature {
                return Err(unclear());
            }
            let arguments = outcome.calls.get(&function).into_iter().flatten();
            passed.extend(arguments.filter_map(|value| match value {
                Value::Address(address) => code.variable(*address),
                _ => None,
            }));
        }
    }
    let workers: BTreeSet<u64> = found.keys().copied().collect();
    let reached = code.reach(&workers)?;
    if reached.of_thread_unknown {
        return Err("what stands behind them has thread-local variables".into());
    }
    // What an inlined copy of one of these would show: a call further in, or a variable.
    for worker in &workers {
        let own = code.reach(&BTreeSet::from([*worker]))?;
        if passed.is_empty() && !own.touches() {
            return Err("what stands behind them keeps nothing in this file's variables".into());
        }
    }
    let mut wanted = reached.clone();
    wanted.functions.retain(|function| !workers.contains(function));
    wanted.variables.extend(passed.iter().copied());
    let uses = code.uses(&wanted)?;
    let outside = |place: &&Use| !reached.functions.contains(&place.by.start);
    let mut passing: BTreeMap<u64, Function> = BTreeMap::new();
    for place in uses.iter().filter(outside) {
        let variable = match place.of {
            Reference::Address(address) => code.variable(address).filter(|variable| passed.contains(variable)),
            _ => None,
        };
        if variable.is_none() {
            return Err("a part of what stands behind them was inlined as well".into());
        }
        passing.insert(place.by.start, place.by);
    }
    for function in passing.into_values() {
        if !only_passes(code, function, &passed, &workers) {
            return Err("the allocator's own variables are used outside of it".into());
        }
    }
    let image = code.image();
    let mut functions = Vec::new();
    for (address, signature) in found {
        let (Some(function), Some(symbol)) = (code.function(address), names::symbol_at(image, address)) else {
            return Err("what stands behind them has no name".into());
        };
        functions.push(Implementation {
            symbol,
            address: ElfAddress(address),
            size: function.end - function.start,
            signature,
        });
    }
    Ok(functions)
}

/// The functions that do an entry point's work, with their arguments: those whose result it returns, or that get the
/// block to free on every way. `None` if it works otherwise.
fn workers(outcome: &arguments::Outcome, entry: Signature) -> Option<Vec<(u64, Signature)>> {
    let position = |function: u64, argument: u8| {
        let arguments = outcome.calls.get(&function)?;
        let mut places = (1u8..)
            .zip(arguments)
            .filter(|(_, value)| **value == Value::Argument(argument));
        let place = places.next().map(|(place, _)| place);
        place.filter(|_| places.next().is_none())
    };
    let mut workers = Vec::new();
    if is(entry, Op::Free) {
        for given in &outcome.given {
            let [function] = given[..] else { return None };
            let pointer = position(function, entry.pointer_argument())?;
            workers.push((function, Signature::new(Op::Free).pointer(pointer)));
        }
        return Some(workers);
    }
    for value in &outcome.returned {
        let function = match value {
            Value::Zero => continue,
            Value::Result(function) => *function,
            _ => return None,
        };
        let size = position(function, entry.size_argument())?;
        let pointer = match entry.pointer_argument() {
            0 => None,
            argument => position(function, argument),
        };
        workers.push(match pointer {
            Some(pointer) => (function, Signature::new(Op::Realloc).pointer(pointer).size(size)),
            None => (function, Signature::new(Op::Alloc).size(size)),
        });
    }
    Some(workers)
}

/// Whether a function takes the addresses of these variables only to hand them to `workers`: where one of those was inlined,
/// it would use them as pointers.
fn only_passes(
    code: &mut Code<'_>,
    function: Function,
    passed: &BTreeSet<(u64, u64)>,
    workers: &BTreeSet<u64>,
) -> bool {
    let instructions: Vec<Instruction> = code.instructions(function).collect();
    let mut holders: BTreeSet<Register> = BTreeSet::new();
    // An argument register that holds an address until the next call.
    let mut waiting: BTreeSet<Register> = BTreeSet::new();
    for instruction in &instructions {
        let references = code.references(instruction);
        let flow = instruction.flow_control();
        let uses = |register: Register| {
            (0..instruction.op_count()).any(|operand| match instruction.op_kind(operand) {
                OpKind::Memory => [instruction.memory_base(), instruction.memory_index()].contains(&register),
                OpKind::Register => instruction.op_register(operand).full_register() == register,
                _ => false,
            })
        };
        let takes = references.iter().any(|reference| match reference {
            Reference::Address(address) => code
                .variable(*address)
                .is_some_and(|variable| passed.contains(&variable)),
            _ => false,
        });
        if takes {
            let to = instruction.op0_register().full_register();
            let moves = matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Lea);
            if !moves || instruction.op0_kind() != OpKind::Register {
                return false;
            }
            if ARGUMENTS.contains(&to) {
                waiting.insert(to);
            } else {
                holders.insert(to);
            }
            continue;
        }
        let copied = instruction.mnemonic() == Mnemonic::Mov
            && instruction.op1_kind() == OpKind::Register
            && holders.contains(&instruction.op1_register())
            && ARGUMENTS.contains(&instruction.op0_register());
        if copied {
            waiting.insert(instruction.op0_register());
            continue;
        }
        if !waiting.is_empty() && flow != iced_x86::FlowControl::Next {
            let called = references.iter().any(|reference| match reference {
                Reference::Code(target) => workers.contains(target),
                _ => false,
            });
            if !called {
                return false;
            }
            waiting.clear();
            continue;
        }
        if waiting.iter().any(|register| uses(*register)) {
            return false;
        }
    }
    // A register that keeps the address over calls is saved, restored, and moved to an argument register.
    holders.iter().all(|holder| {
        instructions.iter().all(|instruction| {
            let moved = instruction.mnemonic() == Mnemonic::Mov
                && instruction.op0_kind() == OpKind::Register
                && instruction.op1_kind() == OpKind::Register
                && instruction.op1_register() == *holder
                && ARGUMENTS.contains(&instruction.op0_register());
            let saved = matches!(instruction.mnemonic(), Mnemonic::Push | Mnemonic::Pop);
            let loaded = matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Lea)
                && instruction.op0_register() == *holder
                && instruction.is_ip_rel_memory_operand();
            let touches = (0..instruction.op_count()).any(|operand| match instruction.op_kind(operand) {
                OpKind::Memory => [instruction.memory_base(), instruction.memory_index()].contains(holder),
                OpKind::Register => instruction.op_register(operand).full_register() == *holder,
                _ => false,
            });
            moved || saved || loaded || !touches
        })
    })
}
