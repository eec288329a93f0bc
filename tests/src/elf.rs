//! The dynamic symbols of a shared library: where they are, and a copy in which some are elsewhere.
//!
//! For tests that need a place in a library's code; reads 64-bit little-endian files that linkers write.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A symbol table.
const SHT_DYNSYM: u64 = 11;
/// A part of the file that is loaded.
const PT_LOAD: u64 = 1;

/// A library's bytes.
pub struct Library {
    bytes: Vec<u8>,
}

impl Library {
    /// Reads it.
    ///
    /// # Errors
    /// When that fails.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
        Ok(Self { bytes })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Changes one byte.
    ///
    /// # Errors
    /// When the file is shorter.
    pub fn set(&mut self, offset: u64, byte: u8) -> Result<()> {
        *self
            .bytes
            .get_mut(usize::try_from(offset)?)
            .context("the file is shorter")? = byte;
        Ok(())
    }

    /// Address of a function.
    ///
    /// # Errors
    /// When it has no such symbol.
    pub fn address(&self, name: &str) -> Result<u64> {
        let entry = *self
            .entries(name)?
            .first()
            .with_context(|| format!("no symbol `{name}`"))?;
        self.number(entry + 8, 8)
    }

    /// Where an address is in the file.
    ///
    /// # Errors
    /// When it is not in it.
    pub fn offset(&self, address: u64) -> Result<u64> {
        let (table, count) = (self.number(32, 8)?, self.number(56, 2)?);
        for header in (0..count).map(|index| table + 56 * index) {
            let field = |at| self.number(header + at, 8);
            let (offset, start, size) = (field(8)?, field(16)?, field(32)?);
            if self.number(header, 4)? == PT_LOAD && (start..start + size).contains(&address) {
                return Ok(address - start + offset);
            }
        }
        anyhow::bail!("{address:#x} is in no segment")
    }

    /// Lets symbols have another address.
    ///
    /// # Errors
    /// When it has no such symbol.
    pub fn set_address(&mut self, name: &str, address: u64) -> Result<()> {
        for entry in self.entries(name)? {
            let at = usize::try_from(entry + 8)?;
            let field = self.bytes.get_mut(at..at + 8).context("the file is shorter")?;
            field.copy_from_slice(&address.to_le_bytes());
        }
        Ok(())
    }

    /// Positions of the entries of a name.
    fn entries(&self, name: &str) -> Result<Vec<u64>> {
        let (table, count) = (self.number(40, 8)?, self.number(60, 2)?);
        let section = |index: u64| table + 64 * index;
        let mut found = Vec::new();
        for header in (0..count).map(section) {
            if self.number(header + 4, 4)? != SHT_DYNSYM {
                continue;
            }
            let (offset, size) = (self.number(header + 24, 8)?, self.number(header + 32, 8)?);
            let strings = self.number(section(self.number(header + 40, 4)?) + 24, 8)?;
            for entry in (offset..offset + size).step_by(24) {
                let start = usize::try_from(strings + self.number(entry, 4)?)?;
                let rest = self.bytes.get(start..).context("a name lies in the file")?;
                if rest
                    .strip_prefix(name.as_bytes())
                    .is_some_and(|rest| rest.first() == Some(&0))
                {
                    found.push(entry);
                }
            }
        }
        Ok(found)
    }

    fn number(&self, at: u64, len: usize) -> Result<u64> {
        let at = usize::try_from(at)?;
        let bytes = self.bytes.get(at..at + len).context("the file is shorter")?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}
