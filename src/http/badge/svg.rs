//! Draws a badge. The image is self-contained: no font, no style sheet, no script.

use super::face::{Face, Tone};

/// The height of a badge.
const HEIGHT: u32 = 20;
/// The space to each side of a text.
const PADDING: u32 = 6;

/// Returns a badge as SVG. Its colours have a contrast of at least 4.5 to white (WCAG 2.2, 1.4.3).
pub(super) fn draw(face: &Face) -> String {
    let colour = match face.tone {
        Tone::Idle => "#666",
        Tone::Good => "#1a7f37",
        Tone::Active => "#1668b8",
        Tone::Late => "#9a5b00",
        Tone::Bad => "#b3261e",
    };
    let (label, text) = (escaped(&face.label), escaped(&face.text));
    let (left, right) = (width(&face.label), width(&face.text));
    let (left_box, right_box) = (left + 2 * PADDING, right + 2 * PADDING);
    let whole = left_box + right_box;
    let (left_at, right_at) = (PADDING, left_box + PADDING);
    // Darken the part that is not done yet.
    let rest = face.percent.map_or(String::new(), |percent| {
        let done = right_box * u32::from(percent.min(100)) / 100;
        let (at, rest) = (left_box + done, right_box - done);
        format!(r##"<path fill="#000" fill-opacity=".35" d="M{at} 0h{rest}v{HEIGHT}h-{rest}z"/>"##)
    });
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="{HEIGHT}" role="img" aria-label="{label}: {text}"><title>{label}: {text}</title><path fill="#444" d="M0 0h{left_box}v{HEIGHT}H0z"/><path fill="{colour}" d="M{left_box} 0h{right_box}v{HEIGHT}h-{right_box}z"/>{rest}<g fill="#fff" font-family="Verdana,DejaVu Sans,Geneva,sans-serif" font-size="11"><text x="{left_at}" y="14" textLength="{left}">{label}</text><text x="{right_at}" y="14" textLength="{right}">{text}</text></g></svg>"##
    )
}

/// Estimates the width of a text in pixels. The image sets it as the `textLength`, so that no font makes the text wider.
fn width(text: &str) -> u32 {
    let tenths: u32 = text.chars().map(tenths).sum();
    (tenths / 10).max(1)
}

/// Returns the width of a character in Verdana at 11 pixels, in tenths of a pixel.
fn tenths(character: char) -> u32 {
    match character {
        'i' | 'j' | 'l' | '\'' | '|' => 31,
        ' ' | '.' | ',' | ':' | ';' | '!' | 'I' | 'f' | 't' | 'r' | '(' | ')' | '[' | ']' => 43,
        '%' | 'M' | 'W' | 'm' | '@' => 110,
        'w' | 'O' | 'Q' | 'G' | 'N' | 'H' | 'D' | '…' => 88,
        'A'..='Z' => 76,
        // Ideographs, syllables and emoji are as wide as they are high.
        '\u{1100}'..='\u{11ff}'
        | '\u{2e80}'..='\u{d7ff}'
        | '\u{f900}'..='\u{faff}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{1f000}'.. => 110,
        _ => 68,
    }
}

/// Escapes a text for an element or an attribute in XML.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            character => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_leaves_its_place_in_the_image() {
        assert_eq!(
            escaped(r#"</text><script>'&"#),
            "&lt;/text&gt;&lt;script&gt;&#39;&amp;"
        );
        assert_eq!(width(""), 1);
    }
}
