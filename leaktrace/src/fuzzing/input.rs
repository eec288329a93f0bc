//! Bytes as choices: numbers of all sizes, lengths, one of several. What is missing at the end is zeros.

/// What is left of an input.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// A number below `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        let number = if limit <= 256 { self.byte().into() } else { self.word() };
        number % limit
    }

    /// The next bytes as a number.
    fn word(&mut self) -> u64 {
        let mut bytes = [0; 8];
        let taken = self.take(8);
        bytes[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(bytes)
    }

    /// A number as hostile files have them: small, around a power of two, near the end of the range, or any.
    pub(super) fn number(&mut self) -> u64 {
        let kind = self.byte();
        let near = u64::from(kind >> 3);
        match kind & 7 {
            0..=2 => self.byte().into(),
            3 => near,
            4 => (1u64 << (self.byte() & 63)).wrapping_add(near).wrapping_sub(8),
            5 => u64::MAX - near,
            6 => u64::from(u16::from_le_bytes([self.byte(), self.byte()])),
            _ => self.word(),
        }
    }

    /// At most so many of the next bytes.
    pub(super) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Bytes with their length (16 bits) in front.
    pub(super) fn block(&mut self) -> &'a [u8] {
        let length = u16::from_le_bytes([self.byte(), self.byte()]);
        self.take(length.into())
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}
