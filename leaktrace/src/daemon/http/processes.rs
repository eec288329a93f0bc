//! `/api/v1`: processes and what is known of them without a profile.
//!
//! Sorts, filters and cuts; the figures are the backend's. Invariant: rows whose key is unknown come last in either
//! order, and equal ones by pid, so that pages of the list neither repeat nor miss one.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::answer::{self, Path, Problem, Query, one_line};
use crate::api;
use crate::daemon::backend::Failure;

/// Most rows of one answer.
const MAX_ROWS: usize = 10_000;

type Answer = Result<Response, Problem>;

/// What the list is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum SortKey {
    /// Growth an hour.
    #[default]
    Growth,
    /// Resident bytes.
    Rss,
    /// Resident anonymous bytes.
    Anonymous,
    /// Swapped bytes.
    Swap,
    /// Live bytes of native allocations.
    Tracked,
    /// Live bytes of the Go heap.
    GoHeap,
    /// Pid.
    Pid,
    /// Name.
    Comm,
    /// Name of the user, or the number where there is none.
    User,
    /// How it stands: traced is the most, then detached, refused, watched, gone.
    State,
}

/// Which comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Order {
    /// The smallest.
    Asc,
    /// The largest.
    Desc,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// What to sort by.
    #[param(inline)]
    sort: SortKey,
    /// Largest first unless told otherwise, and names, users and pids smallest first.
    #[param(inline)]
    order: Option<Order>,
    /// Rows with this text (in any case) in name, arguments, executable, user, unit, container or control group, or with
    /// this pid.
    filter: String,
    /// Rows in these states, separated by commas: `watched`, `traced`, `refused`, `detached`, `gone`.
    state: Option<String>,
    /// Most rows; at most 10,000.
    limit: usize,
    /// Rows to pass over.
    offset: usize,
}

impl Default for ListQuery {
    fn default() -> Self {
        Self {
            sort: SortKey::default(),
            order: None,
            filter: String::new(),
            state: None,
            limit: 1000,
            offset: 0,
        }
    }
}

#[utoipa::path(get, path = "/api/v1/processes", tag = "processes", params(ListQuery), responses(
    (status = 200, body = api::Processes), (status = 400, body = api::Error)))]
/// All processes, sorted and filtered.
pub(super) async fn list(State(app): State<Arc<App>>, Query(query): Query<ListQuery>) -> Answer {
    let states = query.state.as_deref().map(states).transpose()?;
    answer::json(&app, &app.quick, move |backend| {
        let snapshot = backend.processes();
        let needle = query.filter.to_lowercase();
        let mut rows: Vec<&api::Process> = snapshot
            .processes
            .iter()
            .filter(|process| {
                states
                    .as_ref()
                    .is_none_or(|states| states.contains(&process.tracing.state))
            })
            .filter(|process| needle.is_empty() || matches(&process.identity, &needle))
            .collect();
        rows.sort_by(|a, b| compare(a, b, query.sort, query.order));
        Ok(api::Processes {
            time: snapshot.time,
            total: rows.len(),
            processes: rows
                .into_iter()
                .skip(query.offset)
                .take(query.limit.min(MAX_ROWS))
                .cloned()
                .collect(),
        })
    })
    .await
}

fn states(text: &str) -> Result<Vec<api::TraceState>, Problem> {
    let state = |name: &str| {
        Ok(match name.trim() {
            "watched" => api::TraceState::Watched,
            "traced" => api::TraceState::Traced,
            "refused" => api::TraceState::Refused,
            "detached" => api::TraceState::Detached,
            "gone" => api::TraceState::Gone,
            other => {
                return Err(Problem::bad_request(format!(
                    "`{}` is no state; there are watched, traced, refused, detached, gone",
                    one_line(other)
                )));
            }
        })
    };
    text.split(',').map(state).collect()
}

fn matches(identity: &api::Identity, needle: &str) -> bool {
    let texts = [
        Some(&identity.comm),
        identity.executable.as_ref(),
        identity.user.as_ref(),
        identity.unit.as_ref(),
        identity.cgroup.as_ref(),
        identity.container.as_ref().map(|container| &container.id),
    ];
    let mut texts = texts.into_iter().flatten().chain(&identity.command_line);
    identity.pid.to_string() == needle || texts.any(|text| text.to_lowercase().contains(needle))
}

/// A value to sort by.
#[derive(Debug, PartialEq, PartialOrd)]
enum Figure<'p> {
    Number(f64),
    Text(Cow<'p, str>),
}

impl<'p> Figure<'p> {
    /// What a process has; `None` where that is not known.
    fn of(process: &'p api::Process, sort: SortKey) -> Option<Self> {
        let api::Process {
            identity,
            memory,
            tracing,
            ..
        } = process;
        let bytes = |bytes: u64| Some(Self::Number(bytes as f64));
        match sort {
            SortKey::Growth => memory.growth.filter(|growth| !growth.is_nan()).map(Self::Number),
            SortKey::Rss => bytes(memory.rss),
            SortKey::Anonymous => bytes(memory.anonymous),
            SortKey::Swap => bytes(memory.swap),
            SortKey::Tracked => memory.tracked.and_then(bytes),
            SortKey::GoHeap => memory.go_heap.and_then(bytes),
            SortKey::Pid => bytes(identity.pid.into()),
            SortKey::Comm => Some(Self::Text(identity.comm.as_str().into())),
            SortKey::User => Some(Self::Text(match &identity.user {
                Some(user) => user.as_str().into(),
                None => identity.uid.to_string().into(),
            })),
            SortKey::State => bytes(rank(tracing.state)),
        }
    }
}

fn rank(state: api::TraceState) -> u64 {
    match state {
        api::TraceState::Gone => 0,
        api::TraceState::Watched => 1,
        api::TraceState::Refused => 2,
        api::TraceState::Detached => 3,
        api::TraceState::Traced => 4,
    }
}

fn compare(a: &api::Process, b: &api::Process, sort: SortKey, order: Option<Order>) -> Ordering {
    let by_default = match sort {
        SortKey::Pid | SortKey::Comm | SortKey::User => Order::Asc,
        _ => Order::Desc,
    };
    let by_key = match (Figure::of(a, sort), Figure::of(b, sort)) {
        (Some(a), Some(b)) => {
            // Of one key all are numbers, or all are text, and none is NaN.
            let ascending = a.partial_cmp(&b).unwrap_or(Ordering::Equal);
            match order.unwrap_or(by_default) {
                Order::Asc => ascending,
                Order::Desc => ascending.reverse(),
            }
        }
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    };
    by_key.then_with(|| a.identity.pid.cmp(&b.identity.pid))
}

#[utoipa::path(get, path = "/api/v1/processes/{pid}", tag = "processes", params(("pid" = u32, Path)), responses(
    (status = 200, body = api::Details), (status = 404, body = api::Error)))]
/// One process.
pub(super) async fn details(State(app): State<Arc<App>>, Path(pid): Path<u32>) -> Answer {
    answer::json(&app, &app.quick, move |backend| {
        let snapshot = backend.processes();
        let process = snapshot.processes.iter().find(|process| process.identity.pid == pid);
        let process = process.ok_or(Failure::UnknownProcess(pid))?.clone();
        let mut decisions = backend.decisions(Some(pid));
        decisions.truncate(100);
        Ok(api::Details { process, decisions })
    })
    .await
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct TimelineQuery {
    /// From this moment (nanoseconds since 1970); an hour before `until` unless told.
    since: Option<u64>,
    /// To this moment; now unless told.
    until: Option<u64>,
}

#[utoipa::path(get, path = "/api/v1/processes/{pid}/timeline", tag = "processes",
    params(("pid" = u32, Path), TimelineQuery), responses(
    (status = 200, body = api::Timeline), (status = 400, body = api::Error), (status = 404, body = api::Error)))]
/// The course of a process's memory.
pub(super) async fn timeline(
    State(app): State<Arc<App>>,
    Path(pid): Path<u32>,
    Query(query): Query<TimelineQuery>,
) -> Answer {
    const HOUR: u64 = 3_600_000_000_000;
    let until = query.until.unwrap_or_else(now);
    let since = query.since.unwrap_or(until.saturating_sub(HOUR));
    if since > until {
        return Err(Problem::bad_request("`since` lies behind `until`"));
    }
    answer::json(
        &app,
        &app.quick,
        move |backend| Ok(backend.timeline(pid, since, until)?),
    )
    .await
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct GoroutinesQuery {
    /// Only those that wait for so long at least: `90s`, `5m`, or a number of seconds.
    min_wait: Option<String>,
}

#[utoipa::path(get, path = "/api/v1/processes/{pid}/goroutines", tag = "go",
    params(("pid" = u32, Path), GoroutinesQuery), responses(
    (status = 200, body = api::Goroutines), (status = 400, body = api::Error), (status = 404, body = api::Error)))]
/// Goroutines, grouped by what they do.
pub(super) async fn goroutines(
    State(app): State<Arc<App>>,
    Path(pid): Path<u32>,
    Query(query): Query<GoroutinesQuery>,
) -> Answer {
    let min_wait = query.min_wait.as_deref().map_or(Ok(Duration::ZERO), duration)?;
    answer::json(&app, &app.slow, move |backend| Ok(backend.goroutines(pid, min_wait)?)).await
}

fn duration(text: &str) -> Result<Duration, Problem> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text)
        .map_err(|error| Problem::bad_request(format!("`{}` is no duration such as 90s: {error}", one_line(text))))
}

#[utoipa::path(get, path = "/api/v1/processes/{pid}/gc", tag = "go", params(("pid" = u32, Path)), responses(
    (status = 200, body = api::Gc), (status = 404, body = api::Error)))]
/// Go's collector.
pub(super) async fn gc(State(app): State<Arc<App>>, Path(pid): Path<u32>) -> Answer {
    answer::json(&app, &app.slow, move |backend| Ok(backend.gc(pid)?)).await
}

/// How to trace.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TraceRequest {
    /// Mean bytes between samples, 1 to 1 GiB; `null`: what the configuration says.
    #[schema(minimum = 1, maximum = 1_073_741_824)]
    sample_interval: Option<u64>,
}

#[utoipa::path(post, path = "/api/v1/processes/{pid}/trace", tag = "processes", params(("pid" = u32, Path)),
    request_body = TraceRequest, responses(
    (status = 200, body = api::Tracing), (status = 400, body = api::Error), (status = 404, body = api::Error),
    (status = 409, body = api::Error, description = "It cannot be traced")))]
/// Begins to trace a process.
pub(super) async fn start_trace(State(app): State<Arc<App>>, Path(pid): Path<u32>, body: Body) -> Answer {
    let bytes = answer::body(body).await?;
    let request: TraceRequest = if bytes.iter().all(u8::is_ascii_whitespace) {
        TraceRequest::default()
    } else {
        // An object: serde would take an array of the fields as well.
        serde_json::from_slice(&bytes)
            .and_then(|object| serde_json::from_value(serde_json::Value::Object(object)))
            .map_err(|error| Problem::bad_request(one_line(&format!("the body is not as expected: {error}"))))?
    };
    if request
        .sample_interval
        .is_some_and(|interval| !(1..=1 << 30).contains(&interval))
    {
        return Err(Problem::bad_request("`sample_interval` must be 1 to 1073741824 bytes"));
    }
    answer::json(&app, &app.slow, move |backend| {
        Ok(backend.start_trace(pid, request.sample_interval)?)
    })
    .await
}

#[utoipa::path(delete, path = "/api/v1/processes/{pid}/trace", tag = "processes", params(("pid" = u32, Path)), responses(
    (status = 200, body = api::Tracing), (status = 404, body = api::Error)))]
/// Ends it.
pub(super) async fn stop_trace(State(app): State<Arc<App>>, Path(pid): Path<u32>) -> Answer {
    answer::json(&app, &app.slow, move |backend| Ok(backend.stop_trace(pid)?)).await
}

#[utoipa::path(get, path = "/api/v1/status", tag = "daemon", responses((status = 200, body = api::Status)))]
/// How the daemon itself does.
pub(super) async fn status(State(app): State<Arc<App>>) -> Answer {
    answer::json(&app, &app.quick, |backend| Ok(backend.status())).await
}

#[utoipa::path(get, path = "/api/v1/decisions", tag = "daemon", responses((status = 200, body = Vec<api::Decision>)))]
/// What was decided about any process, newest first.
pub(super) async fn decisions(State(app): State<Arc<App>>) -> Answer {
    answer::json(&app, &app.quick, |backend| {
        let mut decisions = backend.decisions(None);
        decisions.truncate(MAX_ROWS);
        Ok(decisions)
    })
    .await
}

#[utoipa::path(get, path = "/api/v1/profiles", tag = "profiles", responses((status = 200, body = api::StoredProfiles)))]
/// Profiles in the store of all processes, newest first.
pub(super) async fn stored(State(app): State<Arc<App>>) -> Answer {
    stored_profiles(app, None).await
}

#[utoipa::path(get, path = "/api/v1/processes/{pid}/profiles", tag = "profiles", params(("pid" = u32, Path)),
    responses((status = 200, body = api::StoredProfiles)))]
/// Profiles in the store of a process, newest first. The process may be gone.
pub(super) async fn stored_of(State(app): State<Arc<App>>, Path(pid): Path<u32>) -> Answer {
    stored_profiles(app, Some(pid)).await
}

async fn stored_profiles(app: Arc<App>, pid: Option<u32>) -> Answer {
    answer::json(&app, &app.quick, move |backend| {
        let mut profiles = backend.stored(pid)?;
        profiles.truncate(MAX_ROWS);
        Ok(api::StoredProfiles { profiles })
    })
    .await
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    #[test]
    fn durations_with_and_without_a_unit() {
        assert_eq!(duration("90").ok(), Some(Duration::from_secs(90)));
        assert_eq!(duration("5m").ok(), Some(Duration::from_secs(300)));
        for bad in ["", "-1", "5 parsecs"] {
            assert_eq!(
                duration(bad).err().map(|problem| problem.status),
                Some(StatusCode::BAD_REQUEST),
                "{bad}"
            );
        }
    }
}
