//! Profiles: tables and trees below `/api/v1`, downloads, and `/debug/pprof` as Go programs offer it.
//!
//! Invariant: a profile is made, changed and written on a thread that may wait, and no answer is larger than
//! `limits::MAX_ANSWER`.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::answer::{self, Path, Problem, Query, flag, one_line, typed};
use super::limits::Bounded;
use super::{App, text};
use crate::api;
use crate::daemon::backend::{Backend, Failure, ProfileKind};
use crate::export;
use crate::model::HeapKind;
use crate::monitor::views::{self, HeapFilter, TREE_NODES, TopOptions, without_allocator};
use crate::report::diff::diff;
use crate::report::{Profile, ValueType};

/// Longest delta profile.
const MAX_SECONDS: u64 = 300;
/// Most rows of a table.
const MAX_ROWS: usize = 100_000;
/// Most nodes of a tree.
const MAX_NODES: usize = 200_000;

type Answer = Result<Response, Problem>;

/// Which memory: `all`, or the name of a kind of heap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Heap(Option<HeapKind>);

impl Heap {
    const ALL: &str = "all";

    fn words() -> impl Iterator<Item = &'static str> {
        [Self::ALL].into_iter().chain(HeapKind::ALL.map(HeapKind::name))
    }
}

impl TryFrom<String> for Heap {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        match HeapKind::parse(&word) {
            Some(kind) => Ok(Self(Some(kind))),
            None if word == Self::ALL => Ok(Self(None)),
            None => Err(format!(
                "unknown heap `{}`; known are {}",
                one_line(&word),
                Self::words().collect::<Vec<_>>().join(", ")
            )),
        }
    }
}

impl PartialSchema for Heap {
    fn schema() -> RefOr<Schema> {
        let words = ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(Self::words()));
        words.into()
    }
}

impl ToSchema for Heap {}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct TopQuery {
    /// `inuse_space` unless told otherwise.
    sample_type: Option<String>,
    /// Which memory.
    #[param(inline)]
    heap: Heap,
    /// A stored profile of this process: what changed since. Without `to`: until now.
    from: Option<String>,
    /// A stored profile of this process, instead of one as of now.
    to: Option<String>,
    /// Sort by what functions hold with all that they called.
    #[serde(deserialize_with = "flag")]
    cum: bool,
    /// Functions with this text in name or file, in any case.
    filter: String,
    /// Most rows; at most 100,000.
    limit: usize,
}

impl Default for TopQuery {
    fn default() -> Self {
        Self {
            sample_type: None,
            heap: Heap::default(),
            from: None,
            to: None,
            cum: false,
            filter: String::new(),
            limit: 1000,
        }
    }
}

#[utoipa::path(get, path = "/api/v1/processes/{pid}/top", tag = "profiles", params(("pid" = u32, Path), TopQuery),
    responses((status = 200, body = api::Top), (status = 400, body = api::Error), (status = 404, body = api::Error)))]
/// Functions by what they hold.
pub(super) async fn top(State(app): State<Arc<App>>, Path(pid): Path<u32>, Query(query): Query<TopQuery>) -> Answer {
    answer::json(&app, &app.slow, move |backend| {
        let mut profile = chosen(backend, pid, query.from.as_deref(), query.to.as_deref())?;
        HeapFilter(query.heap.0).apply(&mut profile);
        let options = TopOptions {
            sample_type: sample_type(&profile, query.sample_type.as_deref())?,
            cumulative: query.cum,
            filter: query.filter,
            limit: query.limit.min(MAX_ROWS),
        };
        Ok(views::top(&profile, &options))
    })
    .await
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct StacksQuery {
    /// `inuse_space` unless told otherwise.
    sample_type: Option<String>,
    /// Which memory.
    #[param(inline)]
    heap: Heap,
    /// A stored profile of this process: what changed since. Without `to`: until now.
    from: Option<String>,
    /// A stored profile of this process, instead of one as of now.
    to: Option<String>,
    /// Most nodes beside the root; at most 200,000. The smallest are folded into their callers.
    limit: usize,
}

impl Default for StacksQuery {
    fn default() -> Self {
        Self {
            sample_type: None,
            heap: Heap::default(),
            from: None,
            to: None,
            limit: TREE_NODES,
        }
    }
}

#[utoipa::path(get, path = "/api/v1/processes/{pid}/stacks", tag = "profiles",
    params(("pid" = u32, Path), StacksQuery),
    responses((status = 200, body = api::Stacks), (status = 400, body = api::Error), (status = 404, body = api::Error)))]
/// Stacks as a tree.
pub(super) async fn stacks(
    State(app): State<Arc<App>>,
    Path(pid): Path<u32>,
    Query(query): Query<StacksQuery>,
) -> Answer {
    answer::json(&app, &app.slow, move |backend| {
        let mut profile = chosen(backend, pid, query.from.as_deref(), query.to.as_deref())?;
        HeapFilter(query.heap.0).apply(&mut profile);
        let sample_type = sample_type(&profile, query.sample_type.as_deref())?;
        Ok(views::stacks(&profile, sample_type, query.limit.min(MAX_NODES)))
    })
    .await
}

/// The profile as of now, a stored one, or the difference of two. The allocator's own frames are left out.
fn chosen(backend: &dyn Backend, pid: u32, from: Option<&str>, to: Option<&str>) -> Result<Profile, Problem> {
    let stored = |id: &str| -> Result<Profile, Problem> {
        let bytes = stored_bytes(backend, Some(pid), id)?;
        decode(id, &bytes)
    };
    let mut new = match to {
        Some(to) => stored(to)?,
        None => backend.profile(pid, ProfileKind::Heap)?,
    };
    without_allocator(&mut new);
    match from {
        None => Ok(new),
        Some(from) => {
            let mut base = stored(from)?;
            without_allocator(&mut base);
            diff(&base, &new).map_err(|error| Problem::bad_request(one_line(&error.to_string())))
        }
    }
}

fn sample_type(profile: &Profile, wanted: Option<&str>) -> Result<usize, Problem> {
    profile
        .sample_type(wanted)
        .map_err(|error| Problem::bad_request(one_line(&error.to_string())))
}

/// A stored profile, if the process has it.
fn stored_bytes(backend: &dyn Backend, pid: Option<u32>, id: &str) -> Result<Vec<u8>, Problem> {
    if !backend.stored(pid)?.iter().any(|profile| profile.id == id) {
        return Err(Failure::UnknownProfile(one_line(id)).into());
    }
    Ok(backend.stored_profile(id)?)
}

fn decode(id: &str, bytes: &[u8]) -> Result<Profile, Problem> {
    export::pprof::read(bytes)
        .map_err(|error| Problem::internal(format!("failed to read the stored profile `{}`: {error}", one_line(id))))
}

/// As what a stored profile is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    /// Gzipped pprof, as stored.
    #[default]
    Pprof,
    /// A flame graph.
    Svg,
    /// Folded stacks.
    Folded,
    /// JSON.
    Json,
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct StoredQuery {
    /// As what.
    #[param(inline)]
    format: Format,
    /// For `svg` and `folded`: `inuse_space` unless told otherwise.
    sample_type: Option<String>,
}

#[utoipa::path(get, path = "/api/v1/processes/{pid}/profiles/{id}", tag = "profiles",
    params(("pid" = u32, Path), ("id" = String, Path), StoredQuery), responses(
    (status = 200, content_type = "application/octet-stream", body = [u8]), (status = 404, body = api::Error)))]
/// A profile out of the store.
pub(super) async fn download_of(
    State(app): State<Arc<App>>,
    Path((pid, id)): Path<(u32, String)>,
    Query(query): Query<StoredQuery>,
) -> Answer {
    fetch(app, Some(pid), id, query).await
}

#[utoipa::path(get, path = "/api/v1/profiles/{id}", tag = "profiles", params(("id" = String, Path), StoredQuery),
    responses((status = 200, content_type = "application/octet-stream", body = [u8]), (status = 404, body = api::Error)))]
/// A profile out of the store, of any process.
pub(super) async fn download(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(query): Query<StoredQuery>,
) -> Answer {
    fetch(app, None, id, query).await
}

async fn fetch(app: Arc<App>, pid: Option<u32>, id: String, query: StoredQuery) -> Answer {
    let (kind, ending) = match query.format {
        Format::Pprof => ("application/octet-stream", "pb.gz"),
        Format::Svg => ("image/svg+xml", "svg"),
        Format::Folded => ("text/plain; charset=utf-8", "folded"),
        Format::Json => ("application/json", "json"),
    };
    let name = file_name(&id, ending);
    let backend = Arc::clone(&app.backend);
    let bytes = app
        .slow
        .run(move || {
            let bytes = stored_bytes(backend.as_ref(), pid, &id)?;
            if query.format == Format::Pprof {
                return Ok(bytes);
            }
            let mut profile = decode(&id, &bytes)?;
            if query.format != Format::Json {
                without_allocator(&mut profile);
            }
            let sample_type = sample_type(&profile, query.sample_type.as_deref())?;
            let mut output = Bounded::default();
            match query.format {
                Format::Pprof => Ok(()),
                Format::Svg => export::svg::write(&profile, sample_type, &mut output),
                Format::Folded => export::folded::write(&profile, sample_type, &mut output),
                Format::Json => export::json::write(&profile, &mut output),
            }
            .map_err(|error| Problem::internal(format!("failed to write the profile: {error}")))?;
            Ok(output.into_inner())
        })
        .await?;
    attachment(&app, kind, &name, bytes)
}

/// The last part of an id as the name of a file, with harmless letters only.
fn file_name(id: &str, ending: &str) -> String {
    let base = crate::report::name::base(id);
    let base = base.strip_suffix(".pb.gz").unwrap_or(base);
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') {
            c
        } else {
            '_'
        }
    };
    let name: String = base.chars().take(100).map(safe).collect();
    format!("{name}.{ending}")
}

/// An answer to be kept as a file. `name` holds harmless letters only.
fn attachment(app: &App, kind: &'static str, name: &str, bytes: Vec<u8>) -> Answer {
    let disposition = HeaderValue::try_from(format!("attachment; filename=\"{name}\""))
        .map_err(|_| Problem::internal("the profile has a name that no header can hold"))?;
    let mut response = typed(kind, app.downloads.body(bytes)?);
    response.headers_mut().insert(header::CONTENT_DISPOSITION, disposition);
    Ok(response)
}

/// What stands below `/debug/pprof`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Heap,
    Allocs,
    Goroutine,
}

impl Named {
    fn name(self) -> &'static str {
        match self {
            Self::Heap => "heap",
            Self::Allocs => "allocs",
            Self::Goroutine => "goroutine",
        }
    }

    fn take(self, backend: &dyn Backend, pid: u32) -> Result<Profile, Problem> {
        let kind = match self {
            Self::Heap | Self::Allocs => ProfileKind::Heap,
            Self::Goroutine => ProfileKind::Goroutines,
        };
        let mut profile = backend.profile(pid, kind)?;
        if self == Self::Allocs && profile.sample_types.contains(&ValueType::new("alloc_space", "bytes")) {
            profile.default_sample_type = "alloc_space".to_owned();
        }
        if profile.time_nanos == 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            profile.time_nanos = i64::try_from(now.as_nanos()).unwrap_or(0);
        }
        Ok(profile)
    }
}

/// Parameters of Go's own profiler, and the pid. Others are passed over, as Go does.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PprofQuery {
    pid: Option<String>,
    seconds: Option<String>,
    debug: Option<String>,
}

type PprofParameters = Result<Query<PprofQuery>, Problem>;

pub(super) async fn heap(State(app): State<Arc<App>>, query: PprofParameters) -> Response {
    named(app, Named::Heap, query).await
}

pub(super) async fn allocs(State(app): State<Arc<App>>, query: PprofParameters) -> Response {
    named(app, Named::Allocs, query).await
}

pub(super) async fn goroutine(State(app): State<Arc<App>>, query: PprofParameters) -> Response {
    named(app, Named::Goroutine, query).await
}

async fn named(app: Arc<App>, named: Named, query: PprofParameters) -> Response {
    let answer = match query {
        Ok(Query(query)) => profile(&app, named, &query).await,
        Err(problem) => Err(problem),
    };
    answer.unwrap_or_else(Problem::into_text)
}

async fn profile(app: &Arc<App>, named: Named, query: &PprofQuery) -> Answer {
    let pid = match query.pid.as_deref().map(str::parse::<u32>) {
        Some(Ok(pid)) => pid,
        Some(Err(_)) => return Err(Problem::bad_request("invalid value for \"pid\" - must be a process id")),
        None => return Err(Problem::bad_request("name a process: ?pid=N")),
    };
    // Anything but a number counts as 0, as with Go.
    let debug = query
        .debug
        .as_deref()
        .and_then(|debug| debug.parse::<i64>().ok())
        .unwrap_or(0);
    if let Some(seconds) = query.seconds.as_deref() {
        let seconds = match seconds.parse::<u64>() {
            Ok(seconds @ 1..=MAX_SECONDS) => seconds,
            Ok(seconds) if seconds > MAX_SECONDS => {
                return Err(Problem::bad_request(format!(
                    "invalid value for \"seconds\" - at most {MAX_SECONDS}"
                )));
            }
            _ => {
                return Err(Problem::bad_request(
                    "invalid value for \"seconds\" - must be a positive integer",
                ));
            }
        };
        if debug != 0 {
            return Err(Problem::bad_request("seconds and debug params are incompatible"));
        }
        return delta(app, named, pid, Duration::from_secs(seconds)).await;
    }
    let backend = Arc::clone(&app.backend);
    if debug == 0 {
        let bytes = app
            .slow
            .run(move || encode(&named.take(backend.as_ref(), pid)?))
            .await?;
        return attachment(app, "application/octet-stream", named.name(), bytes);
    }
    let text = app
        .slow
        .run(move || {
            let backend = backend.as_ref();
            Ok(match named {
                Named::Goroutine if debug >= 2 => backend.goroutine_dump(pid)?,
                Named::Goroutine => text::counts(&named.take(backend, pid)?, named.name()),
                Named::Heap | Named::Allocs => text::heap(&named.take(backend, pid)?).map_err(Problem::internal)?,
            })
        })
        .await?;
    Ok(typed(
        "text/plain; charset=utf-8",
        app.downloads.body(text.into_bytes())?,
    ))
}

/// What changed within the time. When the caller leaves, the wait ends and the second profile is never taken.
async fn delta(app: &Arc<App>, named: Named, pid: u32, time: Duration) -> Answer {
    let _waiting = app.deltas.enter().await?;
    let take = || {
        let backend = Arc::clone(&app.backend);
        app.slow.run(move || named.take(backend.as_ref(), pid))
    };
    let base = take().await?;
    tokio::time::sleep(time).await;
    let new = take().await?;
    let bytes = app
        .slow
        .run(move || {
            let mut difference =
                diff(&base, &new).map_err(|error| Problem::internal(format!("failed to compute delta: {error}")))?;
            difference.drop_frames.clone_from(&new.drop_frames);
            difference.keep_frames.clone_from(&new.keep_frames);
            difference.comments.clone_from(&new.comments);
            encode(&difference)
        })
        .await?;
    let name = format!("{}-delta", named.name());
    attachment(app, "application/octet-stream", &name, bytes)
}

fn encode(profile: &Profile) -> Result<Vec<u8>, Problem> {
    let mut output = Bounded::default();
    export::pprof::write(profile, &mut output)
        .map_err(|error| Problem::internal(format!("failed to write the profile: {error}")))?;
    Ok(output.into_inner())
}

/// What there is below `/debug/pprof`.
pub(super) async fn index() -> Response {
    const TEXT: &str = "/debug/pprof/\n\n\
        heap?pid=N       what is outstanding\n\
        allocs?pid=N     the same, by all that was allocated\n\
        goroutine?pid=N  stacks of goroutines\n\n\
        seconds=S        what changed within S seconds (at most 300)\n\
        debug=1          as text; goroutine with debug=2: each for itself\n\n\
        Processes: /api/v1/processes\n";
    (StatusCode::OK, typed("text/plain; charset=utf-8", TEXT)).into_response()
}
