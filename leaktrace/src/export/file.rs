//! Output files: the format by the name's ending, and writing that never leaves half a file.
//!
//! A file is written under a temporary name in the same directory, synced, and renamed. Invariant: under the final name
//! there is the old file or the whole new one. Devices and pipes (`/dev/stdout`) are written in place, never replaced.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{AccessFlags, access};

use super::{folded, json, pprof, svg};
use crate::report::Profile;
use crate::report::name::printable;

/// A file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.pb.gz`, `.pb`, `.pprof`, `.prof`, `.out`, none, and what is part of a name: gzip-compressed pprof.
    Pprof,
    /// `.svg`: a flame graph.
    Svg,
    /// `.folded`: folded stacks.
    Folded,
    /// `.json`: JSON (see [`json`]).
    Json,
}

impl Format {
    /// The format that the ending of a file name asks for.
    ///
    /// # Errors
    /// It asks for one that is not written, such as `.pdf`: whoever opens that file would not know what it is.
    pub fn of(path: &Path) -> Result<Self, WriteError> {
        let ending = path
            .extension()
            .map(|ending| ending.to_string_lossy().to_ascii_lowercase());
        match ending.as_deref() {
            Some("svg") => Ok(Self::Svg),
            Some("folded") => Ok(Self::Folded),
            Some("json") => Ok(Self::Json),
            None
            | Some("gz" | "pb" | "pprof" | "prof" | "profile" | "heap" | "out" | "tmp" | "base" | "new" | "old") => {
                Ok(Self::Pprof)
            }
            // Part of a name, such as `heap.2026-11-30` or `before.1`.
            Some(ending) if ending.bytes().any(|byte| byte.is_ascii_digit()) => Ok(Self::Pprof),
            Some(ending) => Err(WriteError {
                path: path.to_owned(),
                source: io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "`.{}` is not written; .pb.gz (for pprof), .svg (flame graph), .folded and .json are",
                        printable(ending)
                    ),
                ),
            }),
        }
    }

    /// Finds out before the work begins whether a profile can be written there; see [`check_writable`].
    ///
    /// # Errors
    /// As [`Format::of`], and when the file cannot be written.
    pub fn check(path: &Path) -> Result<(), WriteError> {
        Self::of(path)?;
        check_writable(path)
    }
}

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to write `{}`: {source}", path.display())]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// What went wrong.
    #[source]
    pub source: io::Error,
}

/// Where the bytes go in the end.
enum Target {
    /// A regular file, there or not, with symbolic links followed.
    File(PathBuf),
    /// A device, pipe or socket.
    Special,
    /// A pipe with a name.
    Fifo,
}

/// Finds out before the work begins whether a file can be written there. Leaves nothing behind.
pub fn check_writable(path: &Path) -> Result<(), WriteError> {
    let check = || match target(path)? {
        // A reader would take the end of this opening for the end of the profile.
        Target::Fifo => Ok(access(path, AccessFlags::W_OK)?),
        Target::Special => OpenOptions::new().write(true).open(path).map(drop),
        Target::File(path) => temporary(&path).and_then(|file| file.close()),
    };
    check().map_err(|source| WriteError {
        path: path.to_owned(),
        source,
    })
}

/// Writes a profile in the format that the file's ending asks for. Flame graphs and folded stacks show `sample_type`
/// (a position in [`Profile::sample_types`]); the other formats hold all of them.
pub fn write(path: &Path, profile: &Profile, sample_type: usize) -> Result<(), WriteError> {
    let format = Format::of(path)?;
    replace(path, |output| match format {
        Format::Pprof => pprof::write(profile, output),
        Format::Svg => svg::write(profile, sample_type, output),
        Format::Folded => folded::write(profile, sample_type, output),
        Format::Json => json::write(profile, output),
    })
}

/// Writes a file as a whole or not at all.
pub fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), WriteError> {
    let replace = || match target(path)? {
        Target::Special => in_place(OpenOptions::new().write(true).open(path)?, write),
        Target::Fifo => in_place(open_fifo(path)?, write),
        Target::File(path) => {
            let mut file = temporary(&path)?;
            let mut output = BufWriter::new(file.as_file_mut());
            write(&mut output)?;
            output.flush()?;
            drop(output);
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            // The rename itself reaches the disk with the directory; some file systems cannot sync one.
            let _ = File::open(directory(&path)).and_then(|directory| directory.sync_all());
            Ok(())
        }
    };
    replace().map_err(|source| WriteError {
        path: path.to_owned(),
        source,
    })
}

fn in_place(output: File, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut output = BufWriter::new(output);
    write(&mut output)?;
    output.flush()
}

/// Opens a FIFO that somebody reads; without a reader the usual way would wait for one.
fn open_fifo(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(number) if number == Errno::ENXIO as i32 => {
                io::Error::new(io::ErrorKind::NotConnected, "nobody reads from this FIFO")
            }
            _ => error,
        })?;
    // The reader may be slower than this.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(file)
}

fn target(path: &Path) -> io::Result<Target> {
    if path.file_name().is_none() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err(io::Error::from(io::ErrorKind::IsADirectory)),
        Ok(metadata) if metadata.is_file() => fs::canonicalize(path).map(Target::File),
        Ok(metadata) if metadata.file_type().is_fifo() => Ok(Target::Fifo),
        Ok(_) => Ok(Target::Special),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Target::File(path.to_owned())),
        Err(error) => Err(error),
    }
}

fn directory(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn temporary(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    // Stacks and names of a process are its user's business, and of whoever recorded it.
    let owner = Permissions::from_mode(0o600);
    let place = directory(path);
    tempfile::Builder::new()
        .prefix(".leaktrace.")
        .permissions(owner)
        .tempfile_in(place)
        .map_err(|error| {
            // The name of the temporary file would only distract.
            io::Error::new(
                error.kind(),
                match error.kind() {
                    io::ErrorKind::NotFound => format!("there is no directory `{}`", place.display()),
                    _ => format!("cannot create a file in `{}`: {}", place.display(), cause(&error)),
                },
            )
        })
}

fn cause(error: &io::Error) -> String {
    let innermost = error
        .get_ref()
        .and_then(|inner| inner.source())
        .map(ToString::to_string);
    innermost.unwrap_or_else(|| error.kind().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::ProfileBuilder;

    #[test]
    fn formats_by_ending() {
        let format = |name: &str| Format::of(Path::new(name)).ok();
        assert_eq!(format("a.svg"), Some(Format::Svg));
        assert_eq!(format("a.SVG"), Some(Format::Svg));
        assert_eq!(format("a.folded"), Some(Format::Folded));
        assert_eq!(format("a.json"), Some(Format::Json));
        for name in ["a.pb.gz", "a.pb", "a.pprof", "a", "heap.2026-11-30", "a.out", ".svg"] {
            assert_eq!(format(name), Some(Format::Pprof), "{name}");
        }
        let error = Format::of(Path::new("x.pdf")).expect_err("nobody writes it");
        insta::assert_snapshot!(error, @"failed to write `x.pdf`: `.pdf` is not written; .pb.gz (for pprof), .svg (flame graph), .folded and .json are");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("x.pb.gz");
        fs::write(&path, "old").expect("writes");
        let error = replace(&path, |output| {
            output.write_all(b"half")?;
            Err(io::Error::other("out of ideas"))
        });
        assert!(
            error
                .expect_err("fails")
                .to_string()
                .ends_with("x.pb.gz`: out of ideas")
        );
        assert_eq!(fs::read(&path).expect("reads"), b"old");
        assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 1);
    }

    #[test]
    fn links_are_followed_and_devices_are_not_replaced() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (file, link) = (directory.path().join("file.pb.gz"), directory.path().join("link.pb.gz"));
        fs::write(&file, "old").expect("writes");
        std::os::unix::fs::symlink(&file, &link).expect("links");
        let profile = ProfileBuilder::heap().finish();
        write(&link, &profile, 3).expect("writes");
        assert!(fs::symlink_metadata(&link).expect("exists").is_symlink());
        assert_eq!(pprof::read(File::open(&file).expect("opens")).expect("reads"), profile);
        write(Path::new("/dev/null"), &profile, 3).expect("writes");
        assert!(!fs::metadata("/dev/null").expect("exists").is_file());
    }

    #[test]
    fn files_are_the_owners_alone() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("x.pb.gz");
        write(&path, &ProfileBuilder::heap().finish(), 3).expect("writes");
        assert_eq!(fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_fifo_is_written_to_its_reader_and_never_waited_for() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("makes");
        let profile = ProfileBuilder::heap().finish();
        check_writable(&path).expect("may be written");
        let error = write(&path, &profile, 3).expect_err("without a reader").to_string();
        assert!(error.ends_with("nobody reads from this FIFO"), "{error}");
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(&path)
            .expect("opens");
        check_writable(&path).expect("may be written");
        write(&path, &profile, 3).expect("writes");
        assert_eq!(pprof::read(reader).expect("reads"), profile);
    }

    #[test]
    fn unwritable_places_are_found_beforehand() {
        let directory = tempfile::tempdir().expect("temporary directory");
        assert!(check_writable(directory.path()).is_err(), "a directory");
        let missing = check_writable(&directory.path().join("no/x.svg"))
            .expect_err("no such directory")
            .to_string();
        assert!(missing.contains("there is no directory `"), "{missing}");
        check_writable(&directory.path().join("x.svg")).expect("writable");
        check_writable(Path::new("/dev/null")).expect("writable");
        assert!(
            check_writable(Path::new("/proc/x.svg")).is_err(),
            "no files can be made there"
        );
        assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 0);
    }
}
