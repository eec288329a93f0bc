//! Does every way through a function lead into an allocation function?
//!
//! The rule, for wrappers: walk all instructions reachable from the entry. A path ends well when it calls or jumps to an
//! allocation function of a fitting kind, directly, through a linkage stub or inside a local function for which the same
//! holds; or when it can never return (a throw, an abort, a trap). A path that reaches a return, or a jump to an unknown
//! place, without that is a way around, and one is enough: the function has to be hooked itself. For functions that free,
//! the path of a NULL pointer may return at once.
//!
//! And the weaker question: does any way?

use std::collections::{HashMap, HashSet};

use crate::model::ElfAddress;
use crate::object::code::{Callee, CodeReader, Flow, NullTest, Step, Target};
use crate::object::image::ElfImage;

/// Most instructions over all functions of one question.
const MAX_STEPS: usize = 20_000;
/// Deepest local call that is followed.
const MAX_DEPTH: usize = 4;
/// Longest code that counts as a mere jump to another function.
const MAX_THUNK: usize = 16;

/// External functions that never return. A call of one ends its path.
const NEVER_RETURN: &[&str] = &[
    "abort",
    "exit",
    "_exit",
    "__stack_chk_fail",
    "__assert_fail",
    "__fortify_fail",
    "__cxa_throw",
    "__cxa_rethrow",
    "__cxa_throw_bad_array_new_length",
    "__cxa_call_unexpected",
    "__cxa_call_terminate",
    "_Unwind_Resume",
    "_ZSt9terminatev",
    "_ZSt17__throw_bad_allocv",
    "_ZSt28__throw_bad_array_new_lengthv",
];

/// Whether a name is one of a function that never returns.
pub fn never_returns(name: &[u8]) -> bool {
    NEVER_RETURN.iter().any(|known| known.as_bytes() == name)
}

/// Whether execution can run on from `step` into the instruction behind it: not where another function begins, which
/// means that the call before it never returns.
pub fn runs_on(image: &ElfImage, step: &Step) -> bool {
    image.function_starts().binary_search(&step.next().0).is_err()
}

/// What the walker asks about a callee: is it (or does it always reach) a fitting allocation function? Returns its name.
pub type Reaches<'a> = dyn FnMut(&Callee) -> Option<String> + 'a;

/// Outcome of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Funnel {
    /// Every way leads into these functions.
    Always(Vec<String>),
    /// There is a way around; says where.
    Around(String),
}

/// Instructions still to be looked at, each once: straight on first, then the branches, the latest first.
struct Ways {
    seen: HashSet<ElfAddress>,
    pending: Vec<ElfAddress>,
}

impl Ways {
    fn from(entry: ElfAddress) -> Self {
        Self {
            seen: HashSet::new(),
            pending: vec![entry],
        }
    }

    fn add(&mut self, address: ElfAddress) {
        self.pending.push(address);
    }

    fn next(&mut self) -> Option<ElfAddress> {
        loop {
            let at = self.pending.pop()?;
            if self.seen.insert(at) {
                return Some(at);
            }
        }
    }
}

/// Answers for one function.
pub struct Walk<'a, 'b> {
    reader: CodeReader<'a>,
    reaches: &'b mut Reaches<'b>,
    /// Free-like: the NULL path may return.
    frees: bool,
    steps: usize,
    reached: Vec<String>,
    known: HashMap<ElfAddress, bool>,
}

impl<'a, 'b> Walk<'a, 'b> {
    /// For one image.
    pub fn new(image: &'a ElfImage, frees: bool, reaches: &'b mut Reaches<'b>) -> Self {
        Self {
            reader: CodeReader::new(image),
            reaches,
            frees,
            steps: 0,
            reached: Vec::new(),
            known: HashMap::new(),
        }
    }

    /// Walks a function.
    pub fn funnel(mut self, entry: ElfAddress) -> Funnel {
        match self.walk(entry, 0) {
            Ok(()) if self.reached.is_empty() => Funnel::Around("it never reaches one".into()),
            Ok(()) => {
                self.reached.sort();
                self.reached.dedup();
                Funnel::Always(self.reached)
            }
            Err(way) => Funnel::Around(way),
        }
    }

    /// Whether a way through the function leads into one of these, in its own code or that of a local function that it
    /// calls. Not further: what an allocator calls to tell of a corrupt heap reaches everything.
    pub fn may_reach(mut self, entry: ElfAddress) -> bool {
        self.seek(entry, 0)
    }

    fn seek(&mut self, entry: ElfAddress, depth: usize) -> bool {
        self.known.insert(entry, false);
        let mut ways = Ways::from(entry);
        while let Some(at) = ways.next() {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return true;
            }
            let step = self.reader.step(at);
            match step.flow {
                Flow::Next => {}
                Flow::Stop | Flow::Return => continue,
                Flow::Branch(target) => {
                    // It may lead into another function.
                    if (self.reaches)(&Callee::Local(target)).is_some() {
                        return true;
                    }
                    ways.add(target);
                }
                Flow::Call(target) | Flow::Jump(target) => {
                    let callee = self.reader.callee(target);
                    if (self.reaches)(&callee).is_some() {
                        return true;
                    }
                    let local = match callee {
                        Callee::Local(address) => Some(address),
                        _ => None,
                    };
                    if matches!(step.flow, Flow::Jump(_)) {
                        // Inside the function, or a tail call of a local one: the same thing here.
                        if let Some(address) = local {
                            ways.add(address);
                        }
                        continue;
                    }
                    if let Some(address) = local
                        && depth == 0
                        && !self.known.contains_key(&address)
                        && self.seek(address, depth + 1)
                    {
                        return true;
                    }
                    if self.is_final(target) {
                        continue;
                    }
                }
            }
            if runs_on(self.reader.image(), &step) {
                ways.add(step.next());
            }
        }
        false
    }

    /// The function that this one merely jumps to: no branch, no call, a few instructions.
    pub fn thunk_target(mut self, entry: ElfAddress) -> Option<String> {
        let mut at = entry;
        for _ in 0..MAX_THUNK {
            let step = self.reader.step(at);
            match step.flow {
                Flow::Next => at = step.next(),
                Flow::Jump(target) => {
                    let callee = self.reader.callee(target);
                    return (self.reaches)(&callee);
                }
                _ => return None,
            }
        }
        None
    }

    fn walk(&mut self, entry: ElfAddress, depth: usize) -> Result<(), String> {
        // A function that is being walked counts as one that does not reach: recursion proves nothing.
        self.known.insert(entry, false);
        let null_edge = if self.frees { self.null_edge(entry) } else { None };
        let mut ways = Ways::from(entry);
        while let Some(at) = ways.next() {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err("it is too large to follow".into());
            }
            let step = self.reader.step(at);
            match step.flow {
                Flow::Next => {}
                Flow::Stop => continue,
                Flow::Return => return Err(way(entry, at, "returns")),
                Flow::Branch(target) => {
                    if null_edge != Some((at, target)) {
                        ways.add(target);
                    }
                    if null_edge == Some((at, step.next())) {
                        continue;
                    }
                }
                Flow::Call(target) => {
                    if self.ends_in_allocator(target, depth)? || self.is_final(target) {
                        continue;
                    }
                }
                Flow::Jump(target) => {
                    if self.ends_in_allocator(target, depth)? || self.is_final(target) {
                        continue;
                    }
                    match target {
                        // A jump inside the function, or a tail call of a local one: the same thing here.
                        Target::Address(address) if self.reader.image().is_code(address) => {
                            match self.reader.callee(target) {
                                Callee::Local(address) => ways.add(address),
                                _ => return Err(way(entry, at, "leaves the file")),
                            }
                            continue;
                        }
                        _ => return Err(way(entry, at, "jumps to a place known at run time only")),
                    }
                }
            }
            if runs_on(self.reader.image(), &step) {
                ways.add(step.next());
            }
        }
        self.known.insert(entry, true);
        Ok(())
    }

    fn is_final(&mut self, target: Target) -> bool {
        matches!(self.reader.callee(target), Callee::Symbol(name) if never_returns(&name))
    }

    /// Whether a call ends in an allocation function, on every way through the callee.
    fn ends_in_allocator(&mut self, target: Target, depth: usize) -> Result<bool, String> {
        let callee = self.reader.callee(target);
        if let Some(name) = (self.reaches)(&callee) {
            self.reached.push(name);
            return Ok(true);
        }
        let Callee::Local(address) = callee else {
            return Ok(false);
        };
        if let Some(known) = self.known.get(&address) {
            return Ok(*known);
        }
        if depth == MAX_DEPTH {
            return Ok(false);
        }
        // The callee may have a way around, and this function still reach an allocator behind the call.
        let reached = self.reached.len();
        let always = self.walk(address, depth + 1).is_ok() && self.reached.len() > reached;
        self.known.insert(address, always);
        if !always {
            self.reached.truncate(reached);
        }
        if self.steps > MAX_STEPS {
            Err("it is too large to follow".into())
        } else {
            Ok(always)
        }
    }

    /// The edge that a NULL pointer takes: from a test of the first argument on the straight line from the entry.
    fn null_edge(&mut self, entry: ElfAddress) -> Option<(ElfAddress, ElfAddress)> {
        let mut at = entry;
        let mut tested = false;
        for _ in 0..MAX_THUNK {
            let step = self.reader.step(at);
            match (step.flow, step.null_test) {
                (Flow::Branch(target), NullTest::TakenIfZero) if tested => return Some((at, target)),
                (Flow::Branch(_), NullTest::TakenIfNonZero) if tested => return Some((at, step.next())),
                (Flow::Next, test) => tested = test == NullTest::Tests || (tested && test == NullTest::None),
                _ => return None,
            }
            at = step.next();
        }
        None
    }
}

fn way(entry: ElfAddress, at: ElfAddress, what: &str) -> String {
    let distance = at.0.wrapping_sub(entry.0);
    if distance < 1 << 20 {
        format!("a way {what} at +{distance:#x} before reaching one")
    } else {
        format!("a way {what} at {at} before reaching one")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::fixture::{self, BASE};
    use proptest::prelude::*;

    /// Where the tests put an "allocator".
    const ALLOCATOR: u64 = BASE + 0x40;

    fn image(code: &[u8]) -> ElfImage {
        let mut code = code.to_vec();
        code.resize(0x40, 0xcc);
        code.push(0xc3);
        fixture::code(&code)
    }

    fn funnel(code: &[u8], frees: bool) -> Funnel {
        let image = image(code);
        let mut reaches =
            |callee: &Callee| (*callee == Callee::Local(ElfAddress(ALLOCATOR))).then(|| "malloc".to_owned());
        Walk::new(&image, frees, &mut reaches).funnel(ElfAddress(BASE))
    }

    fn always() -> Funnel {
        Funnel::Always(vec!["malloc".into()])
    }

    #[test]
    fn a_call_or_a_tail_call_is_enough() {
        assert_eq!(funnel(&[0xe8, 0x3b, 0, 0, 0, 0xc3], false), always()); // call; ret
        assert_eq!(funnel(&[0xeb, 0x3e], false), always()); // jmp
    }

    #[test]
    fn a_way_around_is_found() {
        // je to ret; call; ret
        let code = [0x74, 0x05, 0xe8, 0x39, 0, 0, 0, 0xc3];
        assert_eq!(
            funnel(&code, false),
            Funnel::Around("a way returns at +0x7 before reaching one".into())
        );
        // jmp rax
        assert!(matches!(funnel(&[0xff, 0xe0], false), Funnel::Around(_)));
        // a loop that never ends reaches nothing
        assert!(matches!(funnel(&[0xeb, 0xfe], false), Funnel::Around(_)));
    }

    #[test]
    fn a_null_pointer_may_return_from_a_free() {
        // test rdi,rdi; je to ret; jmp
        let code = [0x48, 0x85, 0xff, 0x74, 0x02, 0xeb, 0x39, 0xc3];
        assert_eq!(funnel(&code, true), always());
        assert!(matches!(funnel(&code, false), Funnel::Around(_)));
        // test rdi,rdi; jne to jmp; ret; jmp
        assert_eq!(
            funnel(&[0x48, 0x85, 0xff, 0x75, 0x01, 0xc3, 0xeb, 0x38], true),
            always()
        );
        // test rsi,rsi is another argument
        assert!(matches!(
            funnel(&[0x48, 0x85, 0xf6, 0x74, 0x02, 0xeb, 0x39, 0xc3], true),
            Funnel::Around(_)
        ));
    }

    #[test]
    fn a_local_function_is_followed() {
        // call +1; ret; (local:) jmp
        assert_eq!(funnel(&[0xe8, 1, 0, 0, 0, 0xc3, 0xeb, 0x38], false), always());
        // the local one returns by itself, the allocator is called behind it
        let code = [0xe8, 6, 0, 0, 0, 0xe8, 0x36, 0, 0, 0, 0xc3, 0xc3];
        assert_eq!(funnel(&code, false), always());
        // and is not called at all
        assert!(matches!(
            funnel(&[0xe8, 1, 0, 0, 0, 0xc3, 0xc3], false),
            Funnel::Around(_)
        ));
        // it calls itself for ever
        assert!(matches!(
            funnel(&[0xe8, 0xfb, 0xff, 0xff, 0xff, 0xc3], false),
            Funnel::Around(_)
        ));
    }

    #[test]
    fn one_way_is_enough_to_reach_one_some_time() {
        let may = |code: &[u8]| {
            let image = image(code);
            let mut reaches =
                |callee: &Callee| (*callee == Callee::Local(ElfAddress(ALLOCATOR))).then(|| "malloc".to_owned());
            Walk::new(&image, false, &mut reaches).may_reach(ElfAddress(BASE))
        };
        // je to ret; call; ret
        assert!(may(&[0x74, 0x05, 0xe8, 0x39, 0, 0, 0, 0xc3]));
        // je to the allocator; ret
        assert!(may(&[0x74, 0x3e, 0xc3]));
        // jmp to the allocator
        assert!(may(&[0xeb, 0x3e]));
        assert!(!may(&[0xc3]));
        // a loop that never ends, a jump to who knows where
        assert!(!may(&[0xeb, 0xfe]));
        assert!(!may(&[0xff, 0xe0]));
        // call of a local function that jumps to it
        assert!(may(&[0xe8, 1, 0, 0, 0, 0xc3, 0xeb, 0x38]));
        // one further away: call, ret; (local:) call, ret; (local:) jmp
        assert!(!may(&[0xe8, 1, 0, 0, 0, 0xc3, 0xe8, 1, 0, 0, 0, 0xc3, 0xeb, 0x32]));
    }

    #[test]
    fn a_mere_jump_is_told_from_more() {
        let thunk = |code: &[u8]| {
            let image = image(code);
            let mut reaches =
                |callee: &Callee| (*callee == Callee::Local(ElfAddress(ALLOCATOR))).then(|| "malloc".to_owned());
            Walk::new(&image, false, &mut reaches).thunk_target(ElfAddress(BASE))
        };
        assert_eq!(thunk(&[0x48, 0x89, 0xfe, 0xeb, 0x3b]).as_deref(), Some("malloc"));
        assert_eq!(thunk(&[0x74, 0x00, 0xeb, 0x3c]), None);
        assert_eq!(thunk(&[0xe8, 0x3b, 0, 0, 0, 0xc3]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_end(code in proptest::collection::vec(any::<u8>(), 1..0x40), frees in any::<bool>()) {
            funnel(&code, frees);
        }
    }
}
