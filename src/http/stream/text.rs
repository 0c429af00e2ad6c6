//! Detects text that is not UTF-8 as it arrives, before its frame is complete.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};

/// Reads the same bytes as the codec, which has already validated the frames. Buffers a few bytes, and none between
/// messages.
#[derive(Default)]
pub(super) struct TextWatch {
    /// The part of a frame's header that has arrived.
    header: Vec<u8>,
    mask: [u8; 4],
    /// How many bytes of the current frame's payload have arrived.
    seen: u64,
    length: u64,
    /// Whether the current message is text.
    is_text: bool,
    /// Whether the current frame is part of that message, and not a control frame.
    is_data: bool,
    /// Whether the current message continues in another frame.
    is_fragmented: bool,
    /// The part of a character that has arrived.
    rest: Vec<u8>,
}

impl TextWatch {
    /// Takes bytes. Returns false if they cannot be UTF-8.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> bool {
        while let [first, after @ ..] = bytes {
            if self.seen == self.length {
                self.header.push(*first);
                self.begin_frame();
                bytes = after;
                continue;
            }
            let left = usize::try_from(self.length - self.seen).unwrap_or(usize::MAX);
            let (payload, next) = bytes.split_at(left.min(bytes.len()));
            if self.is_text && self.is_data && !self.read_text(payload) {
                return false;
            }
            self.seen += payload.len() as u64;
            bytes = next;
        }
        true
    }

    /// Whether no message and no frame has arrived in part.
    pub(super) fn is_between_messages(&self) -> bool {
        self.header.is_empty() && self.seen == self.length && !self.is_fragmented
    }

    fn begin_frame(&mut self) {
        let Ok(Some((header, length))) = FrameHeader::parse(&mut Cursor::new(&self.header)) else {
            return;
        };
        self.header = Vec::new();
        self.mask = header.mask.unwrap_or_default();
        (self.seen, self.length) = (0, length);
        self.is_data = matches!(header.opcode, OpCode::Data(_));
        if self.is_data {
            self.is_fragmented = !header.is_final;
        }
        if let OpCode::Data(data @ (Data::Text | Data::Binary)) = header.opcode {
            self.is_text = data == Data::Text;
            self.rest = Vec::new();
        }
    }

    fn read_text(&mut self, payload: &[u8]) -> bool {
        let mut mask = self.mask;
        mask.rotate_left(usize::try_from(self.seen % 4).expect("below 4"));
        let mask = mask.iter().cycle();
        let mut text = std::mem::take(&mut self.rest);
        text.extend(payload.iter().zip(mask).map(|(byte, mask)| byte ^ mask));
        match std::str::from_utf8(&text) {
            Ok(_) => true,
            Err(error) if error.error_len().is_some() => false,
            Err(error) => {
                self.rest = text.split_off(error.valid_up_to());
                true
            }
        }
    }
}
