//! The daemon's page in a browser: what a person sees and can do, at 1,000 processes and 50,000 stacks.
//!
//! Runs against the real server with processes that exist in memory alone (`http_demo`); skipped where Chromium and its
//! driver are missing. Invariant: each test ends with a look at the console and at every address that was asked for.

mod browser;
mod demo;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use browser::{Browser, is_installed, key};
use demo::Demo;
use serde_json::Value;

/// For what the page does by itself.
const SOON: Duration = Duration::from_secs(20);
/// For a profile of 50,000 stacks, which the example makes anew for each request, without optimisation.
const PROFILE: Duration = Duration::from_secs(90);
/// Longest time, in milliseconds, for which the page may not react. Generous: the machine may be busy.
const STALL: f64 = 1500.0;

/// One at a time: two browsers would measure each other.
static ALONE: Mutex<()> = Mutex::new(());

struct Page {
    browser: Browser,
    demo: Demo,
    _alone: MutexGuard<'static, ()>,
}

impl Page {
    /// A page that is logged in; `None`, with a line that says why, where there is no browser.
    fn open() -> Result<Option<Self>> {
        let Some(page) = Self::locked()? else { return Ok(None) };
        let login = format!("{}/login#token={}", page.demo.origin, page.demo.token);
        page.browser.open(&login)?;
        page.browser
            .wait("document.querySelector('.grid tbody.rows tr')", SOON)?;
        Ok(Some(page))
    }

    /// One that is not.
    fn locked() -> Result<Option<Self>> {
        if !is_installed() {
            eprintln!("skipped: the page needs a browser (apt-get install chromium chromium-driver)");
            return Ok(None);
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let demo = Demo::start()?;
        let browser = Browser::start(1360, 900)?;
        Ok(Some(Self {
            browser,
            demo,
            _alone: alone,
        }))
    }

    fn go(&self, hash: &str) -> Result<()> {
        self.browser.open(&format!("{}/{hash}", self.demo.origin))
    }

    /// Opens a view and waits until nothing is being fetched.
    fn settle(&self, hash: &str) -> Result<()> {
        self.go(hash)?;
        self.browser.wait(
            "document.querySelector('main > *') && !document.querySelector('.busy') && !document.querySelector('[aria-busy]')",
            PROFILE,
        )?;
        Ok(())
    }

    /// Begins to count long tasks, those that were included.
    fn watch_tasks(&self) -> Result<()> {
        self.browser.run(
            "window.tasks = []; new PerformanceObserver((list) => { for (const task of list.getEntries()) \
             window.tasks.push(task.duration); }).observe({ type: 'longtask', buffered: true });",
        )?;
        Ok(())
    }

    fn longest_task(&self) -> Result<f64> {
        self.browser.number("Math.max(0, ...window.tasks.splice(0))")
    }

    /// Nothing went wrong unseen, and nobody else was asked for anything.
    fn finish(mut self) -> Result<()> {
        let errors = self.browser.console_errors()?;
        ensure!(errors.is_empty(), "the console says {errors:#?}");
        let origin = format!("{}/", self.demo.origin);
        let requests = self.browser.requests()?;
        ensure!(requests.len() > 10, "only {} requests were seen", requests.len());
        let foreign: Vec<&String> = requests
            .iter()
            .filter(|url| !url.starts_with(&origin) && !url.starts_with("about:") && !url.starts_with("data:"))
            .collect();
        ensure!(foreign.is_empty(), "asked for {foreign:?}");
        Ok(())
    }
}

/// Characters that must not reach the screen: controls, overrides of the writing direction, invisible ones.
const HIDDEN: &str = r"/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]/";

#[test]
fn hostile_names_are_shown_and_do_nothing() -> Result<()> {
    let Some(page) = Page::open()? else { return Ok(()) };
    let browser = &page.browser;
    let harmless = |place: &str| -> Result<()> {
        let strange = browser.run(&format!(
            "const bad = [];
             const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
             while (walk.nextNode()) if ({HIDDEN}.test(walk.currentNode.data)) bad.push(walk.currentNode.data);
             for (const element of document.querySelectorAll('body *')) {{
               if (['IMG', 'SCRIPT', 'IFRAME', 'B', 'OBJECT'].includes(element.tagName)) bad.push(element.outerHTML);
               for (const attribute of element.attributes) if ({HIDDEN}.test(attribute.value)) bad.push(attribute.value);
             }}
             return bad;"
        ))?;
        ensure!(strange == Value::Array(Vec::new()), "{place}: {strange}");
        Ok(())
    };
    // Names of the example: pids that 37 divides have one, and every command line does.
    for (pid, shown) in [
        (111, r"\u001b[31mred\u001b[0m\u0007"),
        (148, r"\u202egnp.exe"),
        (296, "<script>alert("),
        (333, "\"><img src=x on"),
        (370, r"a\nb\r\nSet-Cookie"),
    ] {
        page.settle(&format!("#/?filter={pid}"))?;
        let row = browser
            .text("[...document.querySelectorAll('.grid tbody.rows tr')].map((row) => row.textContent).join('|')")?;
        ensure!(row.contains(shown), "pid {pid} is shown as {row}");
        harmless(&format!("list, pid {pid}"))?;
        page.settle(&format!("#/p/{pid}/decisions"))?;
        let title = browser.text("document.querySelector('h1').textContent")?;
        ensure!(title.contains(shown), "pid {pid} has the title {title}");
        harmless(&format!("process {pid}"))?;
    }
    // A reason with markup, functions with markup, comments of the profile.
    for hash in [
        "#/p/107",
        "#/p/150/top?find=script",
        "#/p/150/top?find=gnp",
        "#/p/150/flame",
        "#/status",
    ] {
        page.settle(hash)?;
        harmless(hash)?;
    }
    page.settle("#/p/150/top?find=script")?;
    let functions = browser.text("document.querySelector('.functions').textContent")?;
    ensure!(functions.contains("<script>alert(1)</script>"), "{functions}");
    page.finish()
}

#[test]
fn a_thousand_processes_are_searched_sorted_and_refreshed() -> Result<()> {
    let Some(page) = Page::open()? else { return Ok(()) };
    let browser = &page.browser;
    page.settle("#/")?;
    page.watch_tasks()?;
    ensure!(
        browser.number("document.querySelectorAll('.grid tbody.rows tr').length")? < 80.0,
        "all rows are elements"
    );
    ensure!(browser.text("document.querySelector('.grid').getAttribute('aria-rowcount')")? == "1001");

    // Growth, largest first, unless told otherwise.
    let growth =
        "[...document.querySelectorAll('.grid tbody.rows tr')].slice(0, 8).map((row) => row.cells[4].textContent)";
    let grown = browser.run(&format!("return {growth}"))?;
    let sizes: Vec<f64> = grown
        .as_array()
        .context("no rows")?
        .iter()
        .filter_map(|text| megabytes(text.as_str()?))
        .collect();
    ensure!(
        sizes.len() == 8 && sizes.is_sorted_by(|a, b| a >= b),
        "growth is {grown}"
    );

    // The end of the list, and back, by keys; rows that were never asked for arrive.
    browser.run("document.querySelector('.grid').focus()")?;
    browser.press([key::END])?;
    let loaded = "document.querySelector('#row-999 a')?.textContent.length > 1";
    browser.wait(loaded, SOON)?;
    ensure!(
        browser.number("document.querySelectorAll('.grid tbody.rows tr').length")? < 80.0,
        "rows pile up"
    );

    // By pid: the first click on a column of numbers that name something sorts upwards.
    browser.click(".grid thead th:nth-child(3) button")?;
    browser.wait("document.querySelector('#row-0')?.cells[2].textContent === '100'", SOON)?;
    browser.wait(
        "document.querySelector('th[aria-sort=ascending]')?.textContent === 'PID'",
        SOON,
    )?;

    every_column_sorts(browser)?;
    browser.click(".grid thead th:nth-child(3) button")?;
    browser.wait("document.querySelector('#row-0')?.cells[2].textContent === '100'", SOON)?;

    // A refresh takes neither focus nor place.
    browser.run("document.querySelector('.grid').focus()")?;
    browser.press(std::iter::repeat_n(key::DOWN, 250))?;
    browser.wait(
        "document.querySelector('tr.active')?.cells[2].textContent === '350'",
        SOON,
    )?;
    let top = browser.number("document.querySelector('.grid').scrollTop")?;
    ensure!(top > 5000.0, "not scrolled: {top}");
    browser.run("window.asked = performance.getEntriesByType('resource').filter((one) => one.name.includes('/processes?')).length")?;
    browser.wait("performance.getEntriesByType('resource').filter((one) => one.name.includes('/processes?')).length > window.asked + 1", SOON)?;
    ensure!(
        browser.number("document.querySelector('.grid').scrollTop")? == top,
        "the list moved"
    );
    ensure!(
        browser.text("document.activeElement.className")? == "grid",
        "the focus went elsewhere"
    );
    ensure!(
        browser.text("document.querySelector('tr.active').cells[2].textContent")? == "350",
        "another row is active"
    );

    // Search: quick, and told in the address.
    browser.press(['/'])?;
    ensure!(browser.text("document.activeElement.type")? == "search");
    browser.press("program-417".chars())?;
    let took = browser.wait(
        "document.querySelector('[role=status]').textContent === '1 process'",
        SOON,
    )?;
    ensure!(took < Duration::from_secs(4), "the search took {took:?}");
    ensure!(browser.text("location.hash")?.contains("filter=program-417"));
    browser.press([key::ESCAPE])?;
    browser.wait(
        "document.querySelector('.grid').getAttribute('aria-rowcount') === '1001'",
        SOON,
    )?;

    // States, each with its reason.
    browser.click(".choice button:nth-child(4)")?;
    browser.wait(
        "[...document.querySelectorAll('.grid .state')].every((one) => one.textContent === 'refused')",
        SOON,
    )?;
    let why = browser.text("document.querySelector('#row-0').cells[11].textContent")?;
    ensure!(why.contains("failed to read `/proc/"), "no reason: {why}");
    browser.click(".choice button:nth-child(1)")?;

    let stall = page.longest_task()?;
    ensure!(stall < STALL, "the page stood still for {stall} ms");
    page.finish()
}

/// All but the picture of the last hour and the reason, and the daemon knows each of them.
fn every_column_sorts(browser: &Browser) -> Result<()> {
    ensure!(browser.number("document.querySelectorAll('.grid thead th button').length")? == 10.0);
    // Narrower than this there is no room for swap.
    browser.resize(1600, 900)?;
    for (column, label) in [(1, "State"), (4, "User"), (9, "Swap")] {
        browser.click(&format!(".grid thead th:nth-child({column}) button"))?;
        browser.wait(
            &format!("document.querySelector('th[aria-sort]')?.textContent === '{label}'"),
            SOON,
        )?;
    }
    // Swapped bytes first; and back, by state: what is traced, then what was.
    let swap = "document.querySelector('#row-0')?.cells[8].textContent";
    browser.wait(&format!("{swap} === '1.00 MiB'"), SOON)?;
    browser.click(".grid thead th:nth-child(1) button")?;
    browser.wait(
        "document.querySelector('#row-0 .state')?.textContent === 'traced'",
        SOON,
    )?;
    ensure!(browser.run("return document.querySelector('.failure')")?.is_null());
    browser.resize(1360, 900)
}

/// What `+12.3 MiB` says, in MiB.
fn megabytes(text: &str) -> Option<f64> {
    let (number, unit) = text.trim_start_matches('+').split_once(' ')?;
    let factor = match unit {
        "KiB" => 1.0 / 1024.0,
        "MiB" => 1.0,
        "GiB" => 1024.0,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

#[test]
fn fifty_thousand_stacks_open_zoom_and_are_searched() -> Result<()> {
    let Some(page) = Page::open()? else { return Ok(()) };
    let browser = &page.browser;
    let frames = "Number(document.querySelector('.flame-detail .where').textContent.replace(/[^0-9]/g, ''))";
    page.settle("#/p/150/flame")?;
    page.watch_tasks()?;
    browser.wait("document.querySelector('.flame canvas')", SOON)?;
    let number = browser.number(frames)?;
    ensure!(number > 90_000.0, "only {number} frames");
    let colors = "(() => { const canvas = document.querySelector('.flame canvas');
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        const seen = new Set(); for (let at = 0; at < data.length; at += 4) seen.add(data[at] << 16 | data[at + 1] << 8 | data[at + 2]);
        return seen.size; })()";
    browser.wait(&format!("{colors} > 20"), SOON)?;
    let opening = page.longest_task()?;
    ensure!(opening < STALL, "opening stood still for {opening} ms");

    // Into the heaviest path, one level at a time; each zoom is a view of its own.
    browser.run("document.querySelector('[data-flame]').focus()")?;
    let total = browser.text("document.querySelector('.flame-detail .amount').textContent")?;
    for _ in 0..6 {
        browser.press([key::DOWN, key::ENTER])?;
    }
    let inside = browser.text("document.querySelector('.flame-detail').innerText")?;
    ensure!(inside.contains("module_5"), "the sixth frame is {inside}");
    ensure!(inside.contains("/src/module_5.rs:"), "no source: {inside}");
    ensure!(browser.text("document.querySelector('.flame-detail .amount').textContent")? != total);
    let zooming = page.longest_task()?;
    ensure!(zooming < STALL, "zooming stood still for {zooming} ms");

    browser.press([key::ESCAPE])?;
    ensure!(
        browser.text("location.hash")?.contains("/flame"),
        "zooming out left the process"
    );
    browser.press(['/'])?;
    browser.press("module_3".chars())?;
    browser.wait(
        "/^[\\d,]+ matches, [\\d.]+ %$/.test(document.querySelector('.panel .tools [role=status]').textContent)",
        SOON,
    )?;
    let searching = page.longest_task()?;
    ensure!(searching < STALL, "searching stood still for {searching} ms");

    // Growth from the oldest stored profile until now, and between two of them: one stack in seven grows.
    page.settle("#/p/150/flame?mode=growth")?;
    browser.wait(
        "document.querySelector('.flame-detail .amount')?.textContent.startsWith('grew ')",
        PROFILE,
    )?;
    ensure!(browser.number("document.querySelectorAll('.panel select').length")? == 2.0);
    page.settle("#/p/150/flame?mode=growth&side=shrank")?;
    browser.wait(
        "document.querySelector('.empty-title')?.textContent === 'Nothing shrank'",
        PROFILE,
    )?;
    page.settle("#/p/150/flame?heap=mmap")?;
    let mapped = browser.number(frames)?;
    ensure!(
        mapped > 0.0 && mapped < number,
        "{mapped} of {number} frames are of mappings"
    );
    page.finish()
}

#[test]
fn everything_is_reached_by_keyboard() -> Result<()> {
    let Some(page) = Page::open()? else { return Ok(()) };
    let browser = &page.browser;
    page.settle("#/")?;
    let first =
        "[...document.querySelectorAll('a, button, input, [tabindex=\"0\"]')].find((one) => one.checkVisibility())";
    ensure!(
        browser.text(&format!("{first}.id"))? == "skip",
        "the skip link is not first"
    );
    browser.run("document.querySelector('#skip').focus()")?;
    let top = browser.number("document.activeElement.getBoundingClientRect().top")?;
    ensure!(top >= 0.0, "the skip link is out of sight");
    browser.press([key::ENTER])?;
    ensure!(browser.text("document.activeElement.className")? == "grid");
    let outline = browser.text("getComputedStyle(document.activeElement).outlineStyle")?;
    ensure!(outline == "solid", "the focus is not seen: {outline}");

    // Search, down into the list, open.
    browser.press(['/'])?;
    browser.press("program-15".chars())?;
    browser.wait(
        "document.querySelector('[role=status]').textContent === '10 processes'",
        SOON,
    )?;
    browser.press([key::ENTER, key::DOWN, key::DOWN])?;
    let chosen = browser.text("document.querySelector('tr.active').cells[2].textContent")?;
    browser.press([key::ENTER])?;
    browser.wait("document.querySelector('h1 small')", SOON)?;
    ensure!(browser.text("document.querySelector('h1 small').textContent")? == format!("pid {chosen}"));
    ensure!(
        browser.text("document.activeElement.tagName")? == "H1",
        "the heading has no focus"
    );

    // Tabs by arrows.
    browser.run("document.querySelector('[role=tab][aria-selected=true]').focus()")?;
    browser.press([key::END])?;
    browser.wait("location.hash.includes('/decisions')", SOON)?;
    browser.press([key::HOME])?;
    browser.wait("location.hash.includes('/flame')", SOON)?;

    // Back: the list as it was left.
    browser.press([key::ESCAPE])?;
    browser.wait(
        "document.querySelector('.grid') && location.hash.includes('filter=program-15')",
        SOON,
    )?;
    browser.wait(
        "document.querySelector('[role=status]').textContent === '10 processes'",
        SOON,
    )?;

    // The flame graph: callers and callees, siblings, zoom in and out.
    page.settle("#/p/150/flame")?;
    browser.run("document.querySelector('[data-flame]').focus()")?;
    let name = "document.querySelector('.flame-detail .name').textContent";
    browser.press([key::DOWN])?;
    ensure!(browser.text(name)? == "main");
    browser.press([key::DOWN, key::DOWN, key::DOWN])?;
    let first = browser.text(name)?;
    browser.press([key::RIGHT])?;
    let second = browser.text(name)?;
    ensure!(first != second, "no sibling of {first}");
    browser.press([key::UP, key::UP, key::UP])?;
    ensure!(browser.text(name)? == "main");
    browser.press([key::ESCAPE])?;
    browser.wait("document.querySelector('.grid')", SOON)?;

    // The list of keys.
    browser.press(['?'])?;
    browser.wait("document.querySelector('dialog').open", SOON)?;
    browser.press([key::ESCAPE])?;
    browser.wait("!document.querySelector('dialog').open", SOON)?;
    page.finish()
}

#[test]
fn tracing_is_started_and_stopped() -> Result<()> {
    let Some(page) = Page::open()? else { return Ok(()) };
    let browser = &page.browser;
    page.settle("#/p/101")?;
    let said = browser.text("document.querySelector('.panel .empty').innerText")?;
    ensure!(
        said.contains("not traced") && said.contains("it does not grow"),
        "{said}"
    );
    browser.click(".panel [data-trace=start]")?;
    browser.wait("document.querySelector('h1 .state').textContent === 'traced'", SOON)?;
    browser.wait("document.querySelector('.flame canvas')", PROFILE)?;
    ensure!(
        browser
            .text("document.querySelector('.why-text').textContent")?
            .contains("by hand")
    );
    browser.click(".head [data-trace=stop]")?;
    browser.wait("document.querySelector('h1 .state').textContent !== 'traced'", SOON)?;
    browser.wait("document.querySelector('.panel .empty [data-trace=start]')", SOON)?;
    page.finish()
}

/// Texts whose contrast with what is behind them is below WCAG's AA, with their colours.
const PALE: &str = r"
    const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return { r, g, b, a }; };
    const light = ({ r, g, b }) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
      .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
    const behind = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const color = parse(getComputedStyle(at).backgroundColor);
        if (color.a === 1) return color;
      }
      return { r: 255, g: 255, b: 255 };
    };
    const pale = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const element = walk.currentNode.parentElement;
      if (!walk.currentNode.data.trim() || !element.checkVisibility() || element.closest(':disabled, .visually-hidden, script, noscript')) continue;
      const style = getComputedStyle(element);
      const [a, b] = [light(parse(style.color)), light(behind(element))].sort((x, y) => y - x);
      const ratio = (a + 0.05) / (b + 0.05);
      if (ratio < 4.5) pale.push(`${walk.currentNode.data.slice(0, 40)}: ${ratio.toFixed(2)}, ${style.color}`);
    }
    return pale;";

#[test]
fn every_view_is_readable_in_dark_light_and_narrow() -> Result<()> {
    let Some(page) = Page::open()? else { return Ok(()) };
    let browser = &page.browser;
    for (scheme, width) in [("light", 1360), ("dark", 1360), ("dark", 390)] {
        browser.prefer(scheme)?;
        browser.resize(width, 900)?;
        for hash in [
            "#/",
            "#/?filter=nothing-has-this-name",
            "#/p/100/top",
            "#/p/100/goroutines",
            "#/p/100/gc",
            "#/p/100/profiles",
            "#/p/101",
            "#/p/107/decisions",
            "#/p/99999",
            "#/status",
        ] {
            // What does not exist is not asked for by the page itself: the answer stands on the console.
            page.settle(hash)?;
            ensure!(browser.text("document.documentElement.dataset.theme")? == scheme);
            let pale = browser.run(PALE)?;
            ensure!(pale == Value::Array(Vec::new()), "{scheme} {hash}: {pale:#}");
            let beyond = browser.number("document.documentElement.scrollWidth - innerWidth")?;
            ensure!(beyond <= 0.0, "{scheme} {hash} at {width}: {beyond} pixels too wide");
            let nameless = browser.run(
                "return [...document.querySelectorAll('button, a, input, select, [tabindex=\"0\"]')]
                   .filter((one) => one.checkVisibility() && !(one.textContent.trim() || one.getAttribute('aria-label') || one.labels?.length))
                   .map((one) => one.outerHTML)",
            )?;
            ensure!(
                nameless == Value::Array(Vec::new()),
                "{hash}: without a name: {nameless}"
            );
            if hash == "#/p/99999" {
                let said = browser.text("document.querySelector('.empty').innerText")?;
                ensure!(said.contains("pid 99999 is not known"), "{said}");
                let errors = browser.console_errors()?;
                ensure!(errors.iter().all(|error| error.contains("404")), "{errors:?}");
            }
        }
    }
    // The switch overrides the system, and stays.
    browser.resize(1360, 900)?;
    page.settle("#/")?;
    browser.click("#theme")?;
    ensure!(browser.text("document.documentElement.dataset.theme")? == "light");
    page.settle("#/status")?;
    ensure!(browser.text("document.documentElement.dataset.theme")? == "light");
    page.finish()
}

#[test]
fn nothing_is_shown_without_the_token() -> Result<()> {
    let Some(mut page) = Page::locked()? else { return Ok(()) };
    let browser = &page.browser;
    page.go("#/")?;
    browser.wait("document.querySelector('input[name=token]')", SOON)?;
    browser.press("wrong".chars().chain([key::ENTER]))?;
    browser.wait(
        "location.pathname === '/login' && document.querySelector('input[name=token]')",
        SOON,
    )?;
    ensure!(browser.run("return document.querySelector('.grid')")?.is_null());
    browser.run("document.querySelector('input[name=token]').focus()")?;
    browser.press(page.demo.token.chars().chain([key::ENTER]))?;
    browser.wait("document.querySelector('.grid tbody.rows tr')", SOON)?;
    // The refusals stand on the console, as they should.
    let errors = browser.console_errors()?;
    ensure!(errors.iter().all(|error| error.contains("401")), "{errors:?}");
    let token = page.demo.token.clone();
    ensure!(
        !browser.text("location.href")?.contains(&token),
        "the token stays in the address"
    );
    // A link may carry it where no server sees it, and it does not stay there either.
    browser.open(&format!("{}/login#token={token}", page.demo.origin))?;
    browser.wait("document.querySelector('.grid tbody.rows tr')", SOON)?;
    // Back to where the test began, past the page that asked for it.
    for _ in 0..browser.number("history.length")? as u32 {
        browser.run("history.back()")?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(
            !browser.text("location.href")?.contains(&token),
            "the token stays in the address of a page before"
        );
    }
    let sent = page.browser.requests()?;
    ensure!(
        sent.iter()
            .all(|url| !url.split('#').next().unwrap_or_default().contains(&token)),
        "the token was sent in an address"
    );
    page.finish()
}
