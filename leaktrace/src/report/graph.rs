//! [`Graph`]: flat and cumulative weight of each function, and of each call between two.
//!
//! Weights are those of `go tool pprof` at function granularity: the leaf gets the flat weight; a function that occurs
//! several times in a stack (recursion) gets the cumulative weight once; small nodes and edges are left out the same way.
//! Invariant: nodes are sorted, and the order is total, so that equal profiles give equal text.

use std::cmp::{Ordering, Reverse};

use hashbrown::HashMap;

use super::profile::{Profile, Sample};
use super::text::Text;

/// Which nodes to keep, and in which order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GraphOptions {
    /// Position of the sample type to weigh by.
    pub sample_type: usize,
    /// Sort by cumulative instead of flat weight.
    pub cumulative: bool,
    /// Show at most so many nodes; 0 for all.
    pub top: usize,
    /// Leave out nodes below this share of the total.
    pub node_fraction: f64,
    /// Leave out edges below this share of the total.
    pub edge_fraction: f64,
}

impl GraphOptions {
    /// Everything, by flat weight.
    pub fn all(sample_type: usize) -> Self {
        Self {
            sample_type,
            cumulative: false,
            top: 0,
            node_fraction: 0.0,
            edge_fraction: 0.0,
        }
    }

    /// What pprof shows unless told otherwise: nodes from 0.5 %, edges from 0.1 % of the total.
    pub fn trimmed(sample_type: usize) -> Self {
        Self {
            node_fraction: 0.005,
            edge_fraction: 0.001,
            ..Self::all(sample_type)
        }
    }
}

/// A function with its weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Function name; `[FILE]` for code of a file without names; `<unknown>`.
    pub name: String,
    /// Weight of the samples with this function as leaf.
    pub flat: i64,
    /// Weight of the samples with this function anywhere.
    pub cumulative: i64,
    /// Edges from callers, heaviest first, as positions in [`Graph::edges`].
    pub callers: Vec<usize>,
    /// Edges to callees, heaviest first, as positions in [`Graph::edges`].
    pub callees: Vec<usize>,
}

/// Calls from one function to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Position of the caller in [`Graph::nodes`].
    pub caller: usize,
    /// Position of the callee in [`Graph::nodes`].
    pub callee: usize,
    /// Weight of the samples with this call.
    pub weight: i64,
    /// All these calls were inlined.
    pub inline: bool,
}

/// How much of a function was inlined into its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inlining {
    /// It is a function of its own everywhere.
    None,
    /// Inlined in some callers.
    Partial,
    /// Inlined in all callers.
    Full,
}

/// Functions and calls of a profile, weighed by one sample type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// Sorted, heaviest first.
    pub nodes: Vec<Node>,
    /// Calls between them.
    pub edges: Vec<Edge>,
    /// Weight of all samples, by absolute value.
    pub total: i64,
    /// Nodes that were too small.
    pub dropped: usize,
    /// Smallest weight that was shown.
    pub cutoff: i64,
    /// Nodes before the limit on their number.
    pub before_top: usize,
}

impl Graph {
    /// Weighs the functions of a profile.
    ///
    /// # Panics
    /// Where the options name a sample type that the profile does not have (see [`Profile::sample_type`]).
    pub fn new(profile: &Profile, options: &GraphOptions) -> Self {
        assert!(
            options.sample_type < profile.sample_types.len() || profile.samples.is_empty(),
            "no such sample type"
        );
        let names = Names::new(profile);
        let mut weights = Weights::new(profile, &names, options.sample_type, None);
        let sum: i64 = weights.flat.iter().fold(0, |sum, flat| sum.saturating_add(*flat));
        let cutoff = |fraction: f64| ((sum as f64 * fraction) as i64).saturating_abs();
        let (node_cutoff, edge_cutoff) = (cutoff(options.node_fraction), cutoff(options.edge_fraction));
        let total = profile.samples.iter().fold(0i64, |total, sample| {
            total.saturating_add(sample.values[options.sample_type].saturating_abs())
        });

        let all = weights.present().count();
        let mut dropped = 0;
        if node_cutoff > 0 {
            let keep: Vec<bool> = weights
                .cumulative
                .iter()
                .map(|weight| weight.saturating_abs() >= node_cutoff)
                .collect();
            let kept = weights.present().filter(|node| keep[*node]).count();
            if kept < all {
                dropped = all - kept;
                weights = Weights::new(profile, &names, options.sample_type, Some(&keep));
            }
        }
        let mut order: Vec<usize> = weights.present().collect();
        let before_top = order.len();
        order.sort_by(|a, b| compare(&weights, &names, options.cumulative, *a, *b));
        if options.top > 0 && options.top < order.len() {
            order.truncate(options.top);
            let mut keep = vec![false; names.names.len()];
            order.iter().for_each(|node| keep[*node] = true);
            weights = Weights::new(profile, &names, options.sample_type, Some(&keep));
            order = weights.present().collect();
            order.sort_by(|a, b| compare(&weights, &names, options.cumulative, *a, *b));
        }
        let shown_cutoff = ((total as f64 * options.node_fraction) as i64).saturating_abs();
        weights.into_graph(
            &names,
            &order,
            edge_cutoff,
            Self {
                total,
                dropped,
                cutoff: shown_cutoff,
                before_top,
                ..Self::default()
            },
        )
    }

    /// How much of a node was inlined.
    pub fn inlining(&self, node: &Node) -> Inlining {
        let inline = |edge: &&usize| self.edges[**edge].inline;
        match (
            node.callers.iter().any(|edge| inline(&edge)),
            node.callers.iter().all(|edge| inline(&edge)),
        ) {
            (false, _) => Inlining::None,
            (true, false) => Inlining::Partial,
            (true, true) => Inlining::Full,
        }
    }

    /// Flat weight of all nodes shown.
    pub fn flat_sum(&self) -> i64 {
        self.nodes.iter().fold(0, |sum, node| sum.saturating_add(node.flat))
    }
}

fn compare(weights: &Weights, names: &Names, cumulative: bool, a: usize, b: usize) -> Ordering {
    let key = |node: usize| {
        let (flat, cum) = (
            weights.flat[node].saturating_abs(),
            weights.cumulative[node].saturating_abs(),
        );
        let (first, second) = if cumulative { (cum, flat) } else { (flat, cum) };
        (Reverse(first), names.names[node].as_str(), Reverse(second), node)
    };
    key(a).cmp(&key(b))
}

/// Node names, and the nodes of each location.
struct Names {
    names: Vec<String>,
    /// Innermost first.
    of_location: Vec<Vec<u32>>,
}

impl Names {
    fn new(profile: &Profile) -> Self {
        let mut names: Vec<String> = Vec::new();
        let mut known: HashMap<Text, u32> = HashMap::new();
        let mut node = |name: Text| {
            *known.entry(name).or_insert_with_key(|name| {
                names.push(name.to_string());
                (names.len() - 1) as u32
            })
        };
        let of_location = profile
            .locations
            .iter()
            .map(|location| profile.texts(location).map(&mut node).collect())
            .collect();
        Self { names, of_location }
    }
}

struct Weights {
    flat: Vec<i64>,
    cumulative: Vec<i64>,
    edges: HashMap<(u32, u32), (i64, bool)>,
}

impl Weights {
    fn new(profile: &Profile, names: &Names, sample_type: usize, keep: Option<&[bool]>) -> Self {
        let nodes = names.names.len();
        let mut weights = Self {
            flat: vec![0; nodes],
            cumulative: vec![0; nodes],
            edges: HashMap::new(),
        };
        // The number of the last sample that counted for a node or an edge: each counts once per sample.
        let mut counted_node = vec![0usize; nodes];
        let mut counted_edge: HashMap<(u32, u32), usize> = HashMap::new();
        for (number, sample) in profile.samples.iter().enumerate() {
            let weight = sample.values[sample_type];
            if weight != 0 {
                weights.add(
                    sample,
                    number + 1,
                    weight,
                    names,
                    keep,
                    &mut counted_node,
                    &mut counted_edge,
                );
            }
        }
        weights
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the two scratch tables are reused over all samples"
    )]
    fn add(
        &mut self,
        sample: &Sample,
        number: usize,
        weight: i64,
        names: &Names,
        keep: Option<&[bool]>,
        counted_node: &mut [usize],
        counted_edge: &mut HashMap<(u32, u32), usize>,
    ) {
        let mut caller: Option<u32> = None;
        let mut leaf_kept = true;
        for location in sample.locations.iter().rev() {
            let nodes = &names.of_location[location.index()];
            for (depth, &node) in nodes.iter().enumerate().rev() {
                let index = node as usize;
                leaf_kept = keep.is_none_or(|keep| keep[index]);
                if !leaf_kept {
                    continue;
                }
                if counted_node[index] != number {
                    counted_node[index] = number;
                    self.cumulative[index] = self.cumulative[index].saturating_add(weight);
                }
                if let Some(caller) = caller.filter(|caller| *caller != node)
                    && counted_edge.insert((caller, node), number) != Some(number)
                {
                    let edge = self.edges.entry((caller, node)).or_insert((0, true));
                    edge.0 = edge.0.saturating_add(weight);
                    edge.1 &= depth + 1 != nodes.len();
                }
                caller = Some(node);
            }
        }
        if let Some(leaf) = caller.filter(|_| leaf_kept) {
            self.flat[leaf as usize] = self.flat[leaf as usize].saturating_add(weight);
        }
    }

    /// Nodes that weigh anything.
    fn present(&self) -> impl Iterator<Item = usize> {
        (0..self.flat.len()).filter(|node| self.flat[*node] != 0 || self.cumulative[*node] != 0)
    }

    fn into_graph(self, names: &Names, order: &[usize], edge_cutoff: i64, mut graph: Graph) -> Graph {
        let mut position = vec![None; names.names.len()];
        for (index, &node) in order.iter().enumerate() {
            position[node] = Some(index);
            graph.nodes.push(Node {
                name: names.names[node].clone(),
                flat: self.flat[node],
                cumulative: self.cumulative[node],
                callers: Vec::new(),
                callees: Vec::new(),
            });
        }
        graph.edges = self
            .edges
            .into_iter()
            .filter(|(_, (weight, _))| weight.saturating_abs() >= edge_cutoff)
            .filter_map(|((caller, callee), (weight, inline))| {
                Some(Edge {
                    caller: position[caller as usize]?,
                    callee: position[callee as usize]?,
                    weight,
                    inline,
                })
            })
            .collect();
        let nodes = &mut graph.nodes;
        graph.edges.sort_by(|a, b| {
            let key = |edge: &Edge| {
                (
                    Reverse(edge.weight.saturating_abs()),
                    &nodes[edge.caller].name,
                    &nodes[edge.callee].name,
                )
            };
            key(a).cmp(&key(b))
        });
        for (index, edge) in graph.edges.iter().enumerate() {
            nodes[edge.caller].callees.push(index);
            nodes[edge.callee].callers.push(index);
        }
        graph
    }
}
