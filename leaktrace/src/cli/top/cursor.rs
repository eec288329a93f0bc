//! A chosen row in a list that is longer than the screen.

use std::ops::Range;

/// The row and what of the list shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    index: usize,
    offset: usize,
    height: usize,
}

impl Cursor {
    /// The row.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Rows that showed last.
    pub fn page(&self) -> usize {
        self.height.max(1)
    }

    /// Goes to a row.
    pub fn at(&mut self, index: usize) {
        self.index = index;
    }

    /// Moves by rows within a list of `count`.
    pub fn step(&mut self, rows: isize, count: usize) {
        self.index = self.index.saturating_add_signed(rows);
        self.limit(count);
    }

    /// The list has `count` rows now.
    pub fn limit(&mut self, count: usize) {
        self.index = self.index.min(count.saturating_sub(1));
    }

    /// The rows to show of `count` where `height` fit: as few as possible move away.
    pub fn window(&mut self, count: usize, height: usize) -> Range<usize> {
        self.height = height;
        self.limit(count);
        if self.index < self.offset {
            self.offset = self.index;
        } else if self.index >= self.offset + height {
            self.offset = self.index + 1 - height;
        }
        self.offset = self.offset.min(count.saturating_sub(height));
        self.offset..(self.offset + height).min(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_chosen_row_shows(steps in prop::collection::vec((-30isize..30, 0usize..60, 0usize..20), 1..40)) {
            let mut cursor = Cursor::default();
            for (rows, count, height) in steps {
                cursor.step(rows, count);
                let window = cursor.window(count, height);
                prop_assert!(window.end <= count && window.len() <= height);
                prop_assert!(window.len() == height.min(count));
                prop_assert!(count == 0 || height == 0 || window.contains(&cursor.index()));
            }
        }
    }
}
