//! `.gnu_debugdata`: the compressed ELF image with the symbols of a stripped file.
//!
//! Invariant: unpacking costs a bounded amount of memory, of input, of output and of CPU, whatever the section holds.

use std::io::{self, Read};
use std::time::Duration;

use lzma_rust2::XzReader;
use nix::time::{ClockId, clock_gettime};

use crate::object::image::ElfImage;

/// Name of the section.
pub const SECTION: &str = ".gnu_debugdata";

/// Largest section, compressed. That of a browser's library has 8 MiB.
const MAX_COMPRESSED: u64 = 16 << 20;
/// Largest image inside it.
const MAX_UNPACKED: u64 = 64 << 20;
/// Memory that the decompressor may use, in KiB. `xz -9` wants a dictionary of 64 MiB.
const MEMORY: u32 = 66 << 10;
/// CPU time of one section. Input that yields no output costs some, too: empty blocks, each with a dictionary.
const MAX_TIME: Duration = Duration::from_secs(3);
/// Input between two looks at the clock.
const STEP: usize = 4096;

/// The image inside an image, if it has one.
///
/// # Errors
/// Why it cannot be had: a limit, or what is wrong with it.
pub fn unpack(image: &ElfImage) -> Option<Result<Vec<u8>, String>> {
    let section = image.section(SECTION)?;
    let packed = image.section_bytes(section, MAX_COMPRESSED);
    Some(
        packed
            .map_err(|error| error.to_string())
            .and_then(|packed| decompress(&packed)),
    )
}

fn decompress(packed: &[u8]) -> Result<Vec<u8>, String> {
    let timed = Timed {
        input: packed,
        until_look: 0,
        end: cpu_time() + MAX_TIME,
    };
    let mut bytes = Vec::new();
    // One stream: what comes behind it is not read.
    XzReader::new_mem_limit(timed, false, MEMORY)
        .take(MAX_UNPACKED + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("failed to decompress: {error}"))?;
    if bytes.len() as u64 > MAX_UNPACKED {
        return Err(format!("decompresses to more than {MAX_UNPACKED} bytes"));
    }
    Ok(bytes)
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Input that ends with an error when it has taken too long.
struct Timed<'a> {
    input: &'a [u8],
    until_look: usize,
    end: Duration,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.until_look == 0 {
            if cpu_time() > self.end {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("took more than {} s of CPU", MAX_TIME.as_secs()),
                ));
            }
            self.until_look = STEP;
        }
        let wanted = buffer.len().min(self.until_look);
        let read = self.input.read(&mut buffer[..wanted])?;
        self.until_look -= read;
        Ok(read)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::Write;

    use lzma_rust2::{XzOptions, XzWriter};

    use super::*;

    fn packed(bytes: &[u8], preset: u32) -> Vec<u8> {
        let mut writer = XzWriter::new(Vec::new(), XzOptions::with_preset(preset)).unwrap();
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn unpacks_what_was_packed() {
        let bytes: Vec<u8> = (0..100_000u32).flat_map(|n| n.wrapping_mul(n).to_le_bytes()).collect();
        for preset in [0, 6, 9] {
            assert!(decompress(&packed(&bytes, preset)).unwrap() == bytes, "{preset}");
        }
        assert!(decompress(&packed(b"", 6)).unwrap().is_empty());
    }

    #[test]
    fn a_bomb_is_left_at_the_limit() {
        let bomb = packed(&vec![0; MAX_UNPACKED as usize + 1], 1);
        assert!(bomb.len() < 100_000);
        let error = decompress(&bomb).unwrap_err();
        assert!(error.contains("decompresses to more than 67108864 bytes"), "{error}");
    }

    #[test]
    fn damage_is_an_error() {
        let whole = packed(b"some bytes of a symbol table", 6);
        for len in 0..whole.len() - 1 {
            assert!(decompress(&whole[..len]).is_err(), "{len}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            let _ = decompress(&damaged);
        }
    }

    #[test]
    fn a_huge_dictionary_is_not_allocated() {
        // The property byte of LZMA2 in the block header: 40 is a dictionary of 4 GiB.
        let mut file = packed(b"x", 6);
        let header = &mut file[12..];
        let len = (usize::from(header[0]) + 1) * 4;
        let at = header[..len].windows(2).position(|pair| pair == [0x21, 1]).unwrap() + 2;
        header[at] = 40;
        let crc = {
            let mut crc = flate2::Crc::new();
            crc.update(&header[..len - 4]);
            crc.sum()
        };
        header[len - 4..len].copy_from_slice(&crc.to_le_bytes());
        let error = decompress(&file).unwrap_err();
        assert!(error.contains("too big"), "{error}");
    }
}
