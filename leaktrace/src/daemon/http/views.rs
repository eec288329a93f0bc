//! A profile as the API tells it: a table of functions and a tree of stacks.
//!
//! Computes only; profiles come from elsewhere. Invariants: a tree's parents stand before their children, the total of
//! a node is its own plus those of its children, and both hold whatever was folded away.

use hashbrown::HashMap;

use crate::daemon::api;
use crate::model::HeapKind;
use crate::report::{Location, Profile};

/// Most nodes of a tree before it is cut: what lies deeper counts at the last node that there was room for.
const MAX_NODES: usize = 2_000_000;

/// Leaves out the samples of other heaps; `None`: of none.
pub(super) fn keep_heap(profile: &mut Profile, heap: Option<HeapKind>) {
    if heap.is_some() {
        profile.samples.retain(|sample| sample.heap() == heap);
    }
}

/// What the profile says about itself: mode, losses, remarks.
pub(super) fn comments(profile: &Profile) -> Vec<String> {
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

/// Frames by number, and the numbers of each location, innermost first.
struct Frames {
    frames: Vec<api::Frame>,
    of_location: Vec<Vec<u32>>,
}

/// How exactly a frame is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    /// A function and where it begins.
    Function,
    /// A line of it.
    Line,
}

impl Frames {
    fn new(profile: &Profile, detail: Detail) -> Self {
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
                    .map(|(depth, name)| number(frame(profile, location, depth, name.into_owned(), detail)))
                    .collect()
            })
            .collect();
        Self { frames, of_location }
    }
}

fn frame(profile: &Profile, location: &Location, depth: usize, name: String, detail: Detail) -> api::Frame {
    let known = location.lines.get(depth).map(|line| (line, profile.function(line)));
    let line = known.map(|(line, function)| match detail {
        Detail::Function => function.start_line,
        Detail::Line => line.line,
    });
    api::Frame {
        function: name,
        file: known
            .map(|(_, function)| function.file.to_string())
            .filter(|file| !file.is_empty()),
        line: line.and_then(|line| u64::try_from(line).ok()).filter(|line| *line > 0),
    }
}

/// What the table shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TopOptions {
    /// Position of the sample type.
    pub sample_type: usize,
    /// Sort by what a function holds with all that it called.
    pub cumulative: bool,
    /// Functions with this text, in any case, in name or file.
    pub filter: String,
    pub limit: usize,
}

/// Functions, largest first. The filter chooses rows; it does not change what they hold.
pub(super) fn top(profile: &Profile, options: &TopOptions) -> api::Top {
    let frames = Frames::new(profile, Detail::Function);
    let mut flat = vec![0i64; frames.frames.len()];
    let mut cum = vec![0i64; frames.frames.len()];
    // The number of the last sample that counted for a function: recursion counts once.
    let mut counted = vec![0usize; frames.frames.len()];
    let mut total = 0i64;
    for (number, sample) in (1..).zip(&profile.samples) {
        let value = sample.values[options.sample_type];
        total = total.saturating_add(value);
        let mut stack = sample.locations.iter().flat_map(|id| &frames.of_location[id.index()]);
        let leaf = stack.next();
        if let Some(leaf) = leaf {
            flat[*leaf as usize] = flat[*leaf as usize].saturating_add(value);
        }
        for frame in leaf.into_iter().chain(stack) {
            let frame = *frame as usize;
            if counted[frame] != number {
                counted[frame] = number;
                cum[frame] = cum[frame].saturating_add(value);
            }
        }
    }
    let needle = options.filter.to_lowercase();
    let holds = |text: &str| text.to_lowercase().contains(&needle);
    let mut rows: Vec<api::TopRow> = frames
        .frames
        .into_iter()
        .zip(flat.into_iter().zip(cum))
        .filter(|(_, (flat, cum))| *flat != 0 || *cum != 0)
        .filter(|(frame, _)| needle.is_empty() || holds(&frame.function) || frame.file.as_deref().is_some_and(holds))
        .map(|(frame, (flat, cum))| api::TopRow { frame, flat, cum })
        .collect();
    rows.sort_by(|a, b| {
        let key = |row: &api::TopRow| {
            let (flat, cum) = (row.flat.saturating_abs(), row.cum.saturating_abs());
            if options.cumulative { (cum, flat) } else { (flat, cum) }
        };
        let place = |row: &api::TopRow| (row.frame.function.clone(), row.frame.file.clone(), row.frame.line);
        key(b).cmp(&key(a)).then_with(|| place(a).cmp(&place(b)))
    });
    let rows_total = rows.len();
    rows.truncate(options.limit);
    api::Top {
        sample_type: profile.sample_types[options.sample_type].kind.to_string(),
        total,
        rows_total,
        rows,
        comments: comments(profile),
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
pub(super) fn stacks(profile: &Profile, sample_type: usize, limit: usize) -> api::Stacks {
    let frames = Frames::new(profile, Detail::Line);
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
