//! From the state to the screen: title, banner, the view, key hints.
//!
//! Draws at any size down to a single cell. Invariant: every string from outside goes through [`text::clean`] first.

mod goroutines;
mod list;
mod process;
mod stacks;

use ratatui::{
    Frame,
    layout::Rect,
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Clear, Paragraph},
};

use super::{
    keys::HELP,
    state::{State, View},
    text,
};

/// Rows that the banner may take.
const MAX_BANNER: usize = 3;

/// How things look.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    /// Colours may be used.
    pub colours: bool,
}

impl Theme {
    fn colour(self, style: Style, colour: Color) -> Style {
        if self.colours { style.fg(colour) } else { style }
    }

    fn heading(self) -> Style {
        self.colour(Style::new().add_modifier(Modifier::BOLD), Color::Cyan)
    }

    fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn faint(self) -> Style {
        self.colour(Style::new(), Color::DarkGray)
    }

    fn chosen(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    fn alarm(self) -> Style {
        self.colour(Style::new().add_modifier(Modifier::BOLD), Color::Red)
    }

    fn growing(self) -> Style {
        self.colour(Style::new(), Color::Yellow)
    }

    fn traced(self) -> Style {
        self.colour(Style::new(), Color::Green)
    }
}

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, state: &mut State, theme: Theme) {
    let mut rest = frame.area();
    let title = title(state);
    line(frame, &mut rest, &title, theme.heading());
    for text in banner(state, rest.width.into()) {
        line(frame, &mut rest, &text, theme.alarm());
    }
    let hints = hints(state);
    if rest.height > 1 {
        rest.height -= 1;
        let last = Rect {
            y: rest.y + rest.height,
            height: 1,
            ..rest
        };
        let (text, style) = match &state.message {
            _ if state.typing => (format!("/{}█", text::clean(filter(state))), theme.strong()),
            Some(message) => (message.clone(), theme.strong()),
            None => (hints.to_owned(), theme.faint()),
        };
        // What is typed shows at its end.
        let columns = usize::from(last.width);
        let text = if state.typing {
            tail(&text, columns)
        } else {
            text::cut(&text, columns)
        };
        frame.render_widget(Line::styled(text, style), last);
    }
    match state.view() {
        View::List => list::draw(frame, rest, state, theme),
        View::Process => process::draw(frame, rest, state, theme),
        View::Calls { .. } => stacks::calls(frame, rest, state, theme),
        View::Outline { .. } => stacks::outline(frame, rest, state, theme),
        View::Goroutines { .. } => goroutines::draw(frame, rest, state, theme),
    }
    if state.help {
        help(frame, rest, state, theme);
    }
}

/// Takes the first row of `rest` for a line of text.
fn line(frame: &mut Frame<'_>, rest: &mut Rect, text: &str, style: Style) {
    if rest.height == 0 {
        return;
    }
    let area = Rect { height: 1, ..*rest };
    frame.render_widget(Line::styled(text::cut(text, area.width.into()), style), area);
    rest.y += 1;
    rest.height -= 1;
}

/// Takes the first row of `rest` for pieces of text.
fn spans(frame: &mut Frame<'_>, rest: &mut Rect, pieces: Vec<Span<'_>>) {
    if rest.height == 0 {
        return;
    }
    frame.render_widget(Line::from(pieces), Rect { height: 1, ..*rest });
    rest.y += 1;
    rest.height -= 1;
}

/// Takes rows of `rest` for a text that is wrapped, no more than `most` of them.
fn wrapped(frame: &mut Frame<'_>, rest: &mut Rect, text: &str, style: Style, most: usize) {
    for text in wrap(text, rest.width.into(), most) {
        line(frame, rest, &text, style);
    }
}

/// Breaks text between words; what does not fit `rows` ends in an ellipsis.
fn wrap(text: &str, columns: usize, rows: usize) -> Vec<String> {
    let mut result: Vec<String> = Vec::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let is_last = result.len() == rows;
        match result.last_mut() {
            Some(last) if is_last || text::width(last) + 1 + text::width(word) <= columns => {
                last.push(' ');
                last.push_str(word);
            }
            _ => result.push(word.to_owned()),
        }
    }
    result.iter().map(|line| text::cut(line, columns)).collect()
}

fn tail(text: &str, columns: usize) -> String {
    let mut start = text.len();
    let mut used = 0;
    for (at, c) in text.char_indices().rev() {
        used += text::width(c.encode_utf8(&mut [0; 4]));
        if used > columns {
            break;
        }
        start = at;
    }
    text[start..].to_owned()
}

fn filter(state: &State) -> &str {
    match state.view() {
        View::List => &state.filter,
        _ => &state.query.filter,
    }
}

fn title(state: &State) -> String {
    let mut title = String::from("leaktrace");
    if let Some(status) = &state.status {
        title += &format!(" {}", text::clean(&status.host));
    }
    title += &format!("  {}", state.title);
    if let Some(status) = &state.status {
        title += &format!("  {} processes, {} traced", status.processes, status.traced);
        title += &format!(
            "  cpu {} + {} probes",
            text::percent(status.own.cpu),
            text::percent(status.own.probes)
        );
        title += &format!("  {}", text::bytes(status.own.rss as f64));
        let losses = status
            .losses
            .iter()
            .fold(0u64, |sum, loss| sum.saturating_add(loss.count));
        if losses > 0 {
            title += &format!("  {} lost", text::count(losses as f64));
        }
    }
    title
}

/// What is wrong, above all else.
fn banner(state: &State, columns: usize) -> Vec<String> {
    let text = match (&state.lost, &state.status) {
        (Some(lost), _) => {
            let what = if state.heard {
                "what shows is old, connecting again"
            } else {
                "connecting again"
            };
            format!("! {what}: {lost}")
        }
        (None, Some(status)) => match status.troubles.as_slice() {
            [] => return Vec::new(),
            [trouble] => format!("! {}", text::clean(trouble)),
            [trouble, more @ ..] => format!("! {} (and {} more)", text::clean(trouble), more.len()),
        },
        (None, None) => return Vec::new(),
    };
    wrap(&text, columns, MAX_BANNER)
}

fn hints(state: &State) -> &'static str {
    match state.view() {
        _ if state.help => "any key: back",
        View::List => "? help  Enter process  s sort  r reverse  / filter  t trace  g goroutines  q quit",
        View::Process => "? help  Esc back  Enter function  v tree  / filter  c cum  h heap  a alloc  t trace  q quit",
        View::Calls { .. } => "? help  Esc back  Enter follow  v tree  h heap  a allocated  q quit",
        View::Outline { .. } => "? help  Esc back  → ← open, close  Enter callers  h heap  a allocated  q quit",
        View::Goroutines { .. } => "? help  Esc back  ↑ ↓ group  q quit",
    }
}

fn help(frame: &mut Frame<'_>, area: Rect, state: &State, theme: Theme) {
    frame.render_widget(Clear, area);
    let lines: Vec<Line<'_>> = HELP
        .iter()
        .skip(state.help_offset)
        .map(|(keys, what)| {
            let keys = text::pad(keys, 14, false);
            Line::from(vec![Span::styled(keys, theme.strong()), Span::raw(*what)])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), area);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrap("one two three four", 9, 2), ["one two", "three fo…"]);
        assert_eq!(wrap("one two three four", 9, 3), ["one two", "three", "four"]);
        assert_eq!(wrap("incomprehensible", 5, 3), ["inco…"]);
        assert_eq!(wrap("", 5, 3), Vec::<String>::new());
        assert_eq!(tail("/abcdef", 3), "def");
    }
}
