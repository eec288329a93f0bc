//! Inputs that are like others, without knowledge of their format.

/// Pseudo-random numbers (xorshift64*).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit.max(1)
    }
}

/// Longest input that is made.
const MAX_LENGTH: usize = 64 << 10;

/// Numbers at which code goes wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    u64::MAX / 2,
    u64::MAX,
];

/// One of the seeds with a few changes.
pub(super) fn mutated(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(8) {
        change(random, &mut bytes, seeds);
    }
    bytes.truncate(MAX_LENGTH);
    bytes
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let at = random.below(bytes.len() + 1);
    let scale = random.below(8);
    let run = 1 + random.below(1 << scale);
    let end = (at + run).min(bytes.len());
    match random.below(9) {
        0 | 1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        2 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.next() as u8;
            }
        }
        3 | 4 => {
            let width = 1 << random.below(4);
            let edge = EDGES[random.below(EDGES.len())].wrapping_add(random.below(3) as u64);
            let edge = if random.below(8) == 0 {
                edge.to_be_bytes()
            } else {
                edge.to_le_bytes()
            };
            if let Some(place) = bytes.get_mut(at..at + width) {
                place.copy_from_slice(&edge[..width]);
            }
        }
        5 => drop(bytes.drain(at..end)),
        6 => {
            let part = bytes[at..end].to_vec();
            let to = random.below(bytes.len() + 1);
            bytes.splice(to..to, part);
        }
        7 => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len() + 1);
            let part = &other[from..(from + run * 4).min(other.len())];
            bytes.splice(at..end, part.iter().copied());
        }
        _ => {
            let new: Vec<u8> = (0..run).map(|_| random.next() as u8).collect();
            bytes.splice(at..at, new);
        }
    }
}
