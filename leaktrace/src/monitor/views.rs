//! A profile as daemon and `top -p` tell it: a table of functions and a tree of stacks.
//!
//! Computes only; profiles come from elsewhere. The table's weights are those of `report::graph`. Invariants: a tree's
//! parents stand before their children, the total of a node is its own plus those of its children, and both hold whatever
//! was folded away.

use hashbrown::HashMap;

use crate::api;
use crate::model::HeapKind;
use crate::report::graph::{Graph, GraphOptions};
use crate::report::prune::prune;
use crate::report::{Location, Profile};

/// Most nodes of a tree before it is cut: what lies deeper counts at the last node that there was room for.
const MAX_NODES: usize = 2_000_000;
/// Nodes of a tree unless told otherwise.
pub const TREE_NODES: usize = 20_000;

/// Which samples count: those of this heap; `None`: all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapFilter(pub Option<HeapKind>);

impl HeapFilter {
    /// Leaves out the samples that do not count.
    pub fn apply(self, profile: &mut Profile) {
        if self.0.is_some() {
            profile.samples.retain(|sample| sample.heap() == self.0);
        }
    }
}

/// Leaves out the frames that readers of the profile would leave out: the allocator's own.
pub fn without_allocator(profile: &mut Profile) {
    if let Err(error) = prune(profile) {
        profile.comments.push(error.to_string());
    }
}

/// What the profile says about itself: mode, losses, remarks.
pub fn comments(profile: &Profile) -> Vec<String> {
    let mut comments = Vec::new();
    if !profile.metadata.mode.is_empty() {
        comments.push(format!("mode: {}", profile.metadata.mode));
    }
    for loss in profile.metadata.losses.iter() {
        comments.push(format!("loss: {} = {} ({})", loss.name, loss.count, loss.meaning));
    }
    comments.extend(profile.comments.iter().cloned());
    comments
}

/// What the table shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopOptions {
    /// Position of the sample type.
    pub sample_type: usize,
    /// Sort by what a function holds with all that it called.
    pub cumulative: bool,
    /// Functions with this text, in any case, in name or file.
    pub filter: String,
    /// Most rows.
    pub limit: usize,
}

/// Functions, largest first. The filter chooses rows; it does not change what they hold.
pub fn top(profile: &Profile, options: &TopOptions) -> api::Top {
    let graph = Graph::new(
        profile,
        &GraphOptions {
            cumulative: options.cumulative,
            ..GraphOptions::all(options.sample_type)
        },
    );
    let places = places(profile);
    let needle = options.filter.to_lowercase();
    let holds = |text: &str| text.to_lowercase().contains(&needle);
    let mut rows: Vec<api::TopRow> = graph
        .nodes
        .into_iter()
        .map(|node| {
            let (file, line) = places.get(node.name.as_str()).copied().unwrap_or_default();
            api::TopRow {
                flat: node.flat,
                cum: node.cumulative,
                frame: api::Frame {
                    file: file.map(str::to_owned),
                    line: line.and_then(|line| u64::try_from(line).ok()),
                    function: node.name,
                },
            }
        })
        .filter(|row| needle.is_empty() || holds(&row.frame.function) || row.frame.file.as_deref().is_some_and(holds))
        .collect();
    let rows_total = rows.len();
    rows.truncate(options.limit);
    api::Top {
        sample_type: profile.sample_types[options.sample_type].kind.to_string(),
        total: profile.samples.iter().fold(0, |total: i64, sample| {
            total.saturating_add(sample.values[options.sample_type])
        }),
        rows_total,
        rows,
        comments: comments(profile),
    }
}

/// File and first line of each function by its name, where all functions of that name agree.
fn places(profile: &Profile) -> HashMap<&str, (Option<&str>, Option<i64>)> {
    let mut places: HashMap<&str, (Option<&str>, Option<i64>)> = HashMap::new();
    for function in &profile.functions {
        let file = Some(function.file.as_str()).filter(|file| !file.is_empty());
        let line = Some(function.start_line).filter(|line| *line > 0);
        places
            .entry(function.name.as_str())
            .and_modify(|known| {
                *known = (
                    known.0.filter(|_| known.0 == file),
                    known.1.filter(|_| *known == (file, line)),
                )
            })
            .or_insert((file, line));
    }
    places
}

/// Frames by number, and the numbers of each location, innermost first.
struct Frames {
    frames: Vec<api::Frame>,
    of_location: Vec<Vec<u32>>,
}

impl Frames {
    fn new(profile: &Profile) -> Self {
        let mut known: HashMap<api::Frame, u32> = HashMap::new();
        let mut frames: Vec<api::Frame> = Vec::new();
        let mut number = |frame: api::Frame| {
            *known.entry(frame).or_insert_with_key(|frame| {
                frames.push(frame.clone());
                (frames.len() - 1) as u32
            })
        };
        let of_location = profile
            .locations
            .iter()
            .map(|location| {
                let names = profile.names(location).enumerate();
                names
                    .map(|(depth, name)| number(frame(profile, location, depth, name.into_owned())))
                    .collect()
            })
            .collect();
        Self { frames, of_location }
    }
}

fn frame(profile: &Profile, location: &Location, depth: usize, name: String) -> api::Frame {
    let line = location.lines.get(depth);
    api::Frame {
        function: name,
        file: line
            .map(|line| profile.function(line).file.to_string())
            .filter(|file| !file.is_empty()),
        line: line
            .and_then(|line| u64::try_from(line.line).ok())
            .filter(|line| *line > 0),
    }
}

struct Node {
    parent: u32,
    frame: u32,
    own: i64,
    total: i64,
    /// Sum of what is below, growth and decline alike: a difference that cancels out is not small.
    weight: u64,
    is_end: bool,
}

/// The stacks as a tree of at most `limit` nodes beside the root. The smallest are folded into their callers.
pub fn stacks(profile: &Profile, sample_type: usize, limit: usize) -> api::Stacks {
    let frames = Frames::new(profile);
    let mut nodes = vec![Node {
        parent: 0,
        frame: u32::MAX,
        own: 0,
        total: 0,
        weight: 0,
        is_end: false,
    }];
    let mut children: HashMap<(u32, u32), u32> = HashMap::new();
    let mut cut = 0;
    for sample in &profile.samples {
        let value = sample.values[sample_type];
        if value == 0 {
            continue;
        }
        let mut at = 0u32;
        let add = |node: &mut Node| {
            node.total = node.total.saturating_add(value);
            node.weight = node.weight.saturating_add(value.unsigned_abs());
        };
        add(&mut nodes[0]);
        let stack = sample.locations.iter().rev();
        for frame in stack.flat_map(|id| frames.of_location[id.index()].iter().rev()) {
            let next = match children.get(&(at, *frame)) {
                Some(next) => *next,
                None if nodes.len() > MAX_NODES => {
                    cut += 1;
                    break;
                }
                None => {
                    let next = nodes.len() as u32;
                    nodes.push(Node {
                        parent: at,
                        frame: *frame,
                        own: 0,
                        total: 0,
                        weight: 0,
                        is_end: false,
                    });
                    children.insert((at, *frame), next);
                    next
                }
            };
            at = next;
            add(&mut nodes[at as usize]);
        }
        let end = &mut nodes[at as usize];
        end.own = end.own.saturating_add(value);
        end.is_end = true;
    }
    drop(children);
    fold(profile, sample_type, frames.frames, &nodes, limit, cut)
}

/// Keeps the heaviest nodes. A child weighs no more than its parent and has a larger number, so what is kept is a tree.
fn fold(
    profile: &Profile,
    sample_type: usize,
    frames: Vec<api::Frame>,
    nodes: &[Node],
    limit: usize,
    cut: usize,
) -> api::Stacks {
    let mut order: Vec<u32> = (1..nodes.len() as u32).collect();
    let by_weight = |node: &u32| (std::cmp::Reverse(nodes[*node as usize].weight), *node);
    if order.len() > limit {
        order.select_nth_unstable_by_key(limit, by_weight);
        order.truncate(limit);
    }
    order.sort_unstable();
    let mut keep = vec![false; nodes.len()];
    keep[0] = true;
    order.iter().for_each(|node| keep[*node as usize] = true);

    let mut folded = cut;
    // Where a node, or the nearest of its callers that is kept, stands in the answer.
    let mut place = vec![0u32; nodes.len()];
    let mut frame_place: HashMap<u32, u32> = HashMap::new();
    let mut answer = api::Stacks {
        sample_type: profile.sample_types[sample_type].kind.to_string(),
        frames: Vec::new(),
        nodes: Vec::with_capacity(order.len() + 1),
        folded: 0,
        comments: comments(profile),
    };
    for (number, node) in nodes.iter().enumerate() {
        let parent = place[node.parent as usize];
        if !keep[number] {
            place[number] = parent;
            folded += usize::from(node.is_end);
            let caller = &mut answer.nodes[parent as usize];
            caller.own = caller.own.saturating_add(node.own);
            continue;
        }
        place[number] = answer.nodes.len() as u32;
        let frame = match node.frame {
            u32::MAX => u32::MAX,
            frame => *frame_place.entry(frame).or_insert_with(|| {
                answer.frames.push(frames[frame as usize].clone());
                (answer.frames.len() - 1) as u32
            }),
        };
        answer.nodes.push(api::StackNode {
            parent,
            frame,
            own: node.own,
            total: node.total,
        });
    }
    answer.folded = folded;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::TextLabel;
    use crate::report::builder::{FrameLine, ProfileBuilder};

    fn profile() -> Profile {
        let mut builder = ProfileBuilder::heap();
        let mut location = |address: u64, name: &str, file: &str| {
            let frame = FrameLine {
                function: name,
                system_name: name,
                file,
                start_line: 7,
                line: 9,
                ..FrameLine::default()
            };
            builder.location(None, address, &[frame])
        };
        let (main, leak, put) = (
            location(1, "main", "main.c"),
            location(2, "leak", "leak.c"),
            location(3, "put", "a.c"),
        );
        let other_put = location(4, "put", "b.c");
        let label = |kind| vec![TextLabel::heap(kind)];
        builder.sample(vec![leak, main], &[2, 200, 1, 100], label(HeapKind::Native), Vec::new());
        builder.sample(vec![put, main], &[1, 60, 1, 30], label(HeapKind::Go), Vec::new());
        builder.sample(vec![other_put, main], &[1, 60, 1, 20], label(HeapKind::Go), Vec::new());
        builder.finish()
    }

    fn table(heap: Option<HeapKind>, sample_type: &str, cumulative: bool, filter: &str) -> (i64, Vec<String>) {
        let mut profile = profile();
        HeapFilter(heap).apply(&mut profile);
        let options = TopOptions {
            sample_type: profile.sample_type(Some(sample_type)).expect("it has them"),
            cumulative,
            filter: filter.to_owned(),
            limit: 100,
        };
        let top = top(&profile, &options);
        let row = |row: &api::TopRow| {
            let file = row.frame.file.as_deref().unwrap_or("-");
            format!("{} {file} {} {}", row.frame.function, row.flat, row.cum)
        };
        (top.total, top.rows.iter().map(row).collect())
    }

    #[test]
    fn table_by_heap() {
        let rows = |rows: &[&str]| rows.iter().map(|row| (*row).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            table(None, "inuse_space", false, ""),
            (150, rows(&["leak leak.c 100 100", "put - 50 50", "main main.c 0 150"]))
        );
        assert_eq!(
            table(Some(HeapKind::Go), "inuse_space", false, ""),
            (50, rows(&["put - 50 50", "main main.c 0 50"]))
        );
        assert_eq!(
            table(Some(HeapKind::Native), "alloc_space", true, "LEA"),
            (200, rows(&["leak leak.c 200 200"]))
        );
        assert_eq!(table(None, "inuse_space", false, "MAIN.c").1, ["main main.c 0 150"]);
    }

    #[test]
    fn tree_with_parents_first() {
        let profile = profile();
        let tree = stacks(&profile, profile.sample_type(None).expect("it has one"), TREE_NODES);
        let names: Vec<&str> = tree.frames.iter().map(|frame| frame.function.as_str()).collect();
        assert_eq!(names, ["main", "leak", "put", "put"]);
        let nodes: Vec<_> = tree
            .nodes
            .iter()
            .map(|node| (node.parent, node.own, node.total))
            .collect();
        assert_eq!(
            nodes,
            [(0, 0, 150), (0, 0, 150), (1, 100, 100), (1, 30, 30), (1, 20, 20)]
        );
    }
}
