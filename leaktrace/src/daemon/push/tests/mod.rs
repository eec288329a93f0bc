//! Pushes to real servers on loopback.
//!
//! Servers are made of the same definitions as receivers: the generated gRPC service, and HTTP routes that decode what
//! arrives. Invariant: every wait ends after [`PATIENCE`].

mod failures;
mod otlp;
mod pyroscope;
mod servers;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Export, Kind, Pusher, TargetSettings, backoff::Pace};
use crate::{
    api::{Container, Identity, PushFigures},
    export::pprof,
    model::HeapKind,
    report::profile::{Location, Mapping, NumericLabel, Profile, TextLabel},
    report::{FrameLine, ProfileBuilder},
};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A quick pace.
const PACE: Pace = Pace {
    first: Duration::from_millis(10),
    most: Duration::from_millis(50),
    asked: Duration::from_secs(2),
    attempts: 3,
};

/// A profile with two mappings, inlined functions, a nameless address, labels, and values that are 0.
fn profile() -> Profile {
    let mut builder = ProfileBuilder::heap();
    let mapping = |start: u64, file: &str, build_id: &str| Mapping {
        start,
        limit: start + 0x1000,
        offset: 0x200,
        file: file.into(),
        build_id: build_id.into(),
        ..Mapping::default()
    };
    let main = builder.mapping(mapping(
        0x1000,
        "/bin/leaky",
        "00aabbccddeeff00112233445566778899aabbcc",
    ));
    let libc = builder.mapping(mapping(0x8000, "/lib/libc.so.6", ""));
    let line = |function, file, line| FrameLine {
        function,
        system_name: function,
        file,
        line,
        ..FrameLine::default()
    };
    let malloc = builder.location(Some(libc), 0x8010, &[line("malloc", "", 0)]);
    let inlined = [line("grow", "leaky.c", 10), line("insert<int>", "leaky.c", 20)];
    let insert = builder.location(Some(main), 0x1010, &inlined);
    let start = builder.location(Some(main), 0x1020, &[line("main", "leaky.c", 30)]);
    let nameless = builder.raw_location(Location {
        address: 0xdead,
        is_folded: true,
        ..Location::default()
    });
    let bytes = NumericLabel {
        key: "bytes".into(),
        value: 32,
        unit: "bytes".into(),
    };
    builder.sample(
        vec![malloc, insert, start],
        &[10, 320, 4, 128],
        vec![TextLabel::heap(HeapKind::Native)],
        vec![bytes],
    );
    builder.sample(
        vec![malloc, start],
        &[7, 70, 0, 0],
        vec![TextLabel::heap(HeapKind::Native)],
        Vec::new(),
    );
    builder.sample(
        vec![nameless],
        &[1, 4096, 1, 4096],
        vec![TextLabel::heap(HeapKind::Mmap)],
        Vec::new(),
    );
    let profile = builder.profile_mut();
    profile.time_nanos = 1_700_000_060_000_000_000;
    profile.duration_nanos = 60_000_000_000;
    profile.period = 512 << 10;
    profile.comments.push("a remark".to_owned());
    profile.drop_frames = "malloc".to_owned();
    profile.metadata.mode = "sampled".to_owned();
    profile.metadata.losses.add("ring_full", 3, "allocations are missing");
    builder.finish()
}

/// The export number `n` of a process; its begin tells it from others.
fn export(n: u64) -> Export {
    let profile = profile();
    let mut bytes = Vec::new();
    pprof::write(&profile, &mut bytes).expect("writing to memory");
    Export {
        identity: Arc::new(Identity {
            pid: 4242,
            start_time: 17,
            comm: "leaky".to_owned(),
            executable: Some("/bin/leaky".to_owned()),
            user: Some("daemon".to_owned()),
            container: Some(Container {
                engine: "docker".to_owned(),
                id: "c0ffee".to_owned(),
            }),
            ..Identity::default()
        }),
        begin: 1_700_000_000_000_000_000 + n * 1_000_000_000,
        end: 1_700_000_060_000_000_000 + n * 1_000_000_000,
        profile: Arc::new(profile),
        pprof: bytes.into(),
    }
}

fn settings(kind: Kind, url: &str) -> TargetSettings {
    TargetSettings {
        name: "there".into(),
        kind,
        url: url.to_owned(),
        headers: Vec::new(),
        token_file: None,
        timeout: Duration::from_secs(10),
        queue_profiles: 16,
        queue_bytes: 16 << 20,
        original_payload: false,
    }
}

fn start(settings: TargetSettings) -> Pusher {
    Pusher::start_paced(vec![settings], "the-host", PACE)
}

fn figures(pusher: &Pusher) -> PushFigures {
    pusher.figures().remove(0)
}

/// Waits until the figures of the only target are as wanted.
async fn until(pusher: &Pusher, wanted: impl Fn(&PushFigures) -> bool) -> PushFigures {
    let end = Instant::now() + PATIENCE;
    loop {
        let figures = figures(pusher);
        if wanted(&figures) {
            return figures;
        }
        assert!(Instant::now() < end, "it did not come so far: {figures:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
