//! A tree of stacks, seen as functions that call each other and as rows of an outline.
//!
//! Pure: from [`api::Stacks`] to rows. Nothing that the source says is trusted: indices are checked, and a node whose
//! parent does not come before it is left out.

use std::collections::{HashMap, HashSet};

use super::text;
use crate::api;

/// Most nodes that are looked at.
const MAX_NODES: usize = 200_000;
/// Most rows of an outline.
const MAX_OUTLINE: usize = 20_000;

/// A function that calls, or is called, with the weight of these calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name, harmless.
    pub function: String,
    /// Weight of the stacks with this call.
    pub weight: i64,
}

/// A function with those around it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// Weight of the stacks that end here.
    pub flat: i64,
    /// Weight of the stacks that pass here.
    pub cumulative: i64,
    /// Weight of all stacks.
    pub total: i64,
    /// Who calls it, heaviest first.
    pub callers: Vec<Call>,
    /// Whom it calls, heaviest first.
    pub callees: Vec<Call>,
}

/// A row of the outline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlineRow {
    /// The node.
    pub node: usize,
    /// How deep it lies; 0 for the outermost frames.
    pub depth: usize,
    /// Its function, harmless.
    pub function: String,
    /// With all below.
    pub total: i64,
    /// What stacks that end here hold.
    pub own: i64,
    /// Whether there is something below it, and whether that is shown.
    pub open: Option<bool>,
}

/// Stacks made ready for questions.
#[derive(Clone, Debug, Default)]
pub struct CallTree {
    nodes: Vec<Node>,
    /// Functions by number, harmless.
    names: Vec<String>,
    total: i64,
}

#[derive(Clone, Debug)]
struct Node {
    parent: usize,
    function: usize,
    own: i64,
    total: i64,
    children: Vec<usize>,
}

impl CallTree {
    /// Takes over what is consistent in an answer.
    pub fn new(stacks: &api::Stacks) -> Self {
        let mut tree = Self::default();
        // Frames of one function at several lines are one function here.
        let mut numbers: HashMap<String, usize> = HashMap::new();
        let functions: Vec<usize> = stacks
            .frames
            .iter()
            .map(|frame| {
                let name = text::clean(&frame.function);
                let next = numbers.len();
                *numbers.entry(name).or_insert(next)
            })
            .collect();
        tree.names = vec![String::new(); numbers.len()];
        for (name, number) in numbers {
            tree.names[number] = name;
        }
        // Position of each node of the answer in `nodes`.
        let mut places: Vec<Option<usize>> = Vec::new();
        for (index, node) in stacks.nodes.iter().take(MAX_NODES).enumerate() {
            let place = match index {
                0 => Some((0, usize::MAX)),
                _ => {
                    let parent = places.get(node.parent as usize).copied().flatten();
                    parent.zip(functions.get(node.frame as usize).copied())
                }
            };
            places.push(place.map(|(parent, function)| tree.add(parent, function, node)));
        }
        let totals: Vec<i64> = tree.nodes.iter().map(|node| node.total).collect();
        for node in &mut tree.nodes {
            node.children
                .sort_by_key(|child| std::cmp::Reverse(totals[*child].saturating_abs()));
        }
        tree.total = totals.first().copied().unwrap_or(0);
        tree
    }

    fn add(&mut self, parent: usize, function: usize, node: &api::StackNode) -> usize {
        let place = self.nodes.len();
        self.nodes.push(Node {
            parent,
            function,
            own: node.own,
            total: node.total,
            children: Vec::new(),
        });
        if place > 0 {
            self.nodes[parent].children.push(place);
        }
        place
    }

    fn number(&self, function: &str) -> Option<usize> {
        self.names.iter().position(|name| name == function)
    }

    /// The nodes from the parent of `node` outwards, without the root.
    fn above(&self, node: usize) -> impl Iterator<Item = usize> {
        let parent = |node: usize| Some(self.nodes[node].parent).filter(|parent| *parent != 0);
        std::iter::successors(parent(node), move |node| parent(*node))
    }

    /// Whether the call that leads to `node` was made further out, too: its weight is told there.
    fn is_repeated(&self, node: usize) -> bool {
        let call = |node: usize| (self.nodes[self.nodes[node].parent].function, self.nodes[node].function);
        self.above(node).any(|other| call(other) == call(node))
    }

    /// A function with its callers and callees. In a recursive stack each weight counts once.
    pub fn neighbours(&self, function: &str) -> Neighbours {
        let mut result = Neighbours {
            total: self.total,
            ..Neighbours::default()
        };
        let Some(function) = self.number(function) else {
            return result;
        };
        let mut callers: HashMap<usize, i64> = HashMap::new();
        let mut callees: HashMap<usize, i64> = HashMap::new();
        for (index, node) in self.nodes.iter().enumerate().skip(1) {
            let caller = self.nodes[node.parent].function;
            if node.function == function {
                result.flat = result.flat.saturating_add(node.own);
                if !self.above(index).any(|other| self.nodes[other].function == function) {
                    result.cumulative = result.cumulative.saturating_add(node.total);
                }
            }
            let weights = match (caller == function, node.function == function) {
                (true, false) => &mut callees,
                (false, true) if node.parent != 0 => &mut callers,
                _ => continue,
            };
            if !self.is_repeated(index) {
                let other = if node.function == function {
                    caller
                } else {
                    node.function
                };
                let sum = weights.entry(other).or_default();
                *sum = sum.saturating_add(node.total);
            }
        }
        result.callers = self.sorted(callers);
        result.callees = self.sorted(callees);
        result
    }

    fn sorted(&self, weights: HashMap<usize, i64>) -> Vec<Call> {
        let mut calls: Vec<Call> = weights
            .into_iter()
            .map(|(function, weight)| Call {
                function: self.names[function].clone(),
                weight,
            })
            .collect();
        let size = |call: &Call| std::cmp::Reverse(call.weight.saturating_abs());
        calls.sort_by(|a, b| size(a).cmp(&size(b)).then_with(|| a.function.cmp(&b.function)));
        calls
    }

    /// The heaviest node of a function.
    pub fn heaviest(&self, function: &str) -> Option<usize> {
        let function = self.number(function)?;
        (1..self.nodes.len())
            .filter(|index| self.nodes[*index].function == function)
            .max_by_key(|index| (self.nodes[*index].total, std::cmp::Reverse(*index)))
    }

    /// The nodes to open so that the heaviest stack through a function shows; through any if it is `None`.
    pub fn heaviest_path(&self, function: Option<&str>) -> HashSet<usize> {
        let start = match function {
            None => (!self.nodes.is_empty()).then_some(0),
            Some(function) => self.heaviest(function),
        };
        let Some(start) = start else { return HashSet::new() };
        let down = std::iter::successors(Some(start), |node| self.nodes[*node].children.first().copied());
        self.above(start).chain(down).collect()
    }

    /// Weight of all stacks.
    pub fn total(&self) -> i64 {
        self.total
    }

    /// The rows that show when these nodes are open.
    pub fn outline(&self, open: &HashSet<usize>) -> Vec<OutlineRow> {
        let mut rows = Vec::new();
        let Some(root) = self.nodes.first() else { return rows };
        let mut waiting: Vec<(usize, usize)> = root.children.iter().rev().map(|child| (*child, 0)).collect();
        while let Some((index, depth)) = waiting.pop()
            && rows.len() < MAX_OUTLINE
        {
            let node = &self.nodes[index];
            let is_open = open.contains(&index);
            rows.push(OutlineRow {
                node: index,
                depth,
                function: self.names[node.function].clone(),
                total: node.total,
                own: node.own,
                open: (!node.children.is_empty()).then_some(is_open),
            });
            if is_open {
                waiting.extend(node.children.iter().rev().map(|child| (*child, depth + 1)));
            }
        }
        rows
    }

    /// The node above; `None` for outermost frames.
    pub fn parent(&self, node: usize) -> Option<usize> {
        self.nodes
            .get(node)
            .map(|node| node.parent)
            .filter(|parent| *parent != 0)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `main` → `serve` → `serve` → `cache` (100), `main` → `serve` → `parse` (30, of which own 10), `main` own 1.
    pub fn stacks() -> api::Stacks {
        let frame = |function: &str| api::Frame {
            function: function.to_owned(),
            ..api::Frame::default()
        };
        let node = |parent, frame, own, total| api::StackNode {
            parent,
            frame,
            own,
            total,
        };
        api::Stacks {
            sample_type: "inuse_space".to_owned(),
            frames: ["main", "serve", "cache", "parse", "grow\u{1b}[31m"]
                .map(frame)
                .to_vec(),
            nodes: vec![
                node(0, u32::MAX, 0, 131),
                node(0, 0, 1, 131),
                node(1, 1, 0, 130),
                node(2, 1, 0, 100),
                node(3, 2, 100, 100),
                node(2, 3, 10, 30),
                node(5, 4, 20, 20),
            ],
            folded: 0,
            comments: Vec::new(),
        }
    }

    #[test]
    fn a_recursive_function_counts_once() {
        let tree = CallTree::new(&stacks());
        let serve = tree.neighbours("serve");
        assert_eq!((serve.flat, serve.cumulative, serve.total), (0, 130, 131));
        let call = |function: &str, weight| Call {
            function: function.to_owned(),
            weight,
        };
        assert_eq!(serve.callers, [call("main", 130)]);
        assert_eq!(serve.callees, [call("cache", 100), call("parse", 30)]);
        assert_eq!(tree.neighbours("main").callers, []);
        assert_eq!(
            tree.neighbours("nobody"),
            Neighbours {
                total: 131,
                ..Neighbours::default()
            }
        );
    }

    #[test]
    fn the_outline_follows_what_is_open() {
        let tree = CallTree::new(&stacks());
        let show = |open: &HashSet<usize>| -> Vec<String> {
            tree.outline(open)
                .iter()
                .map(|row| format!("{}{} {}", " ".repeat(row.depth), row.function, row.total))
                .collect()
        };
        assert_eq!(show(&HashSet::new()), ["main 131"]);
        assert_eq!(
            show(&tree.heaviest_path(Some("parse"))),
            [
                "main 131",
                " serve 130",
                "  serve 100",
                "  parse 30",
                "   grow\\u{1b}[31m 20"
            ]
        );
        assert_eq!(
            show(&tree.heaviest_path(None)).last().map(String::as_str),
            Some("  parse 30")
        );
    }

    #[test]
    fn what_is_inconsistent_is_left_out() {
        let mut hostile = stacks();
        hostile.nodes[4].parent = 900;
        hostile.nodes[5].frame = 77;
        hostile.nodes[3].parent = 3;
        let tree = CallTree::new(&hostile);
        let open: HashSet<usize> = (0..100).collect();
        let names: Vec<String> = tree.outline(&open).into_iter().map(|row| row.function).collect();
        assert_eq!(names, ["main", "serve"]);
        let empty = CallTree::new(&api::Stacks {
            nodes: Vec::new(),
            ..stacks()
        });
        assert_eq!(empty.outline(&open), []);
        assert_eq!(empty.neighbours("main"), Neighbours::default());
    }
}
