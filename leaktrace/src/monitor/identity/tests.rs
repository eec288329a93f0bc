//! Identities of real processes, and command lines that nobody would write.

use std::process::{Child, Command, Stdio};

use proptest::prelude::*;

use super::*;
use crate::proc::identity::read_key;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sleeping(program: &std::path::Path) -> (Running, ProcessKey) {
    let child = Command::new(program).arg("600").stdin(Stdio::null()).spawn().unwrap();
    let child = Running(child);
    // The key is the same before and after exec, the rest is not.
    let pid = child.0.id();
    for _ in 0..500 {
        if std::fs::read(format!("/proc/{pid}/cmdline"))
            .unwrap()
            .ends_with(b"\x00600\0")
        {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let key = read_key(pid).unwrap();
    (child, key)
}

#[test]
fn its_own_process() {
    let identities = Identities::default();
    let key = read_key(std::process::id()).unwrap();
    let identity = identities.read(key).unwrap();
    let executable = std::env::current_exe().unwrap();
    assert_eq!(identity.executable.as_deref(), executable.to_str());
    assert_eq!(identity.uid, nix::unistd::getuid().as_raw());
    assert!(identity.cgroup.as_deref().unwrap().starts_with('/'));
    assert_eq!(identity.runtime, api::Runtime::Native);
    assert!(!identity.command_line.is_empty());
    let image = crate::object::image::ElfImage::open(File::open(executable).unwrap()).unwrap();
    assert_eq!(identity.build_id, image.build_id().map(ToString::to_string));
    let now = u64::try_from(nanos(ClockId::CLOCK_REALTIME)).unwrap();
    assert!(identity.started <= now && now - identity.started < 3_600_000_000_000);
    assert_eq!(identities.read(key).unwrap(), identity);
}

#[test]
fn a_program_whose_file_is_gone_and_then_whose_process_is() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("naps\n<b>");
    std::fs::copy("/bin/sleep", &program).unwrap();
    let (mut child, key) = sleeping(&program);
    std::fs::remove_file(&program).unwrap();
    let identities = Identities::default();
    let identity = identities.read(key).unwrap();
    assert_eq!(identity.comm, "naps\n<b>");
    assert_eq!(identity.executable.unwrap(), format!("{} (deleted)", program.display()));
    assert_eq!(identity.command_line[1], "600");

    let other = ProcessKey {
        start_time: key.start_time + 1,
        ..key
    };
    assert!(matches!(identities.read(other), Err(ProcError::Exited { .. })));
    child.0.kill().unwrap();
    for _ in 0..500 {
        if matches!(identities.read(key), Err(ProcError::Exited { .. })) {
            break; // a zombie
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(matches!(identities.read(key), Err(ProcError::Exited { .. })));
    child.0.wait().unwrap();
    assert!(matches!(identities.read(key), Err(ProcError::NoSuchProcess { .. })));
}

#[test]
fn command_lines_are_shortened() {
    assert_eq!(command_line(b""), Vec::<String>::new());
    assert_eq!(command_line(b"\0\0\0"), Vec::<String>::new());
    assert_eq!(command_line(b"a\0\0b\0"), ["a", "", "b"]);
    assert_eq!(command_line(b"nginx: worker\0\0\0\0\0"), ["nginx: worker"]);
    let long = command_line(&[b'x'; MAX_COMMAND_LINE + 1]);
    assert_eq!(long.len(), 1);
    assert_eq!(long[0].len(), MAX_COMMAND_LINE);
    assert!(long[0].ends_with("x…"));
    let exact = command_line(&[b'x'; MAX_COMMAND_LINE]);
    assert!(exact[0].ends_with("xx"));
}

proptest! {
    #[test]
    fn any_command_line_keeps_its_bounds(
        bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(0xff), Just(b'a'), any::<u8>()], 0..MAX_COMMAND_LINE + 2)
    ) {
        let line = command_line(&bytes);
        prop_assert!(line.iter().map(String::len).sum::<usize>() <= MAX_COMMAND_LINE);
        prop_assert!(line.len() <= MAX_ARGUMENTS + 1);
    }
}
