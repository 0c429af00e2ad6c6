//! Compression of what browsers load: pages are repetitive, and each visit loads the whole page.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use rocket::Request;
use rocket::http::Header;
use rocket::response::Builder;

/// The smallest body that is compressed. A smaller one fits into one packet anyway.
const LEAST_BYTES: usize = 1_024;

/// Returns the bytes compressed by gzip, if that is smaller.
pub(super) fn gzip(bytes: &[u8], how: Compression) -> Option<Vec<u8>> {
    if bytes.len() < LEAST_BYTES {
        return None;
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), how);
    encoder.write_all(bytes).ok()?;
    let packed = encoder.finish().ok()?;
    (packed.len() < bytes.len()).then_some(packed)
}

/// Whether the client accepts gzip.
pub(super) fn accepts_gzip(request: &Request<'_>) -> bool {
    let mut accepted = request.headers().get("Accept-Encoding");
    accepted.any(|header| header.split(',').any(names_gzip))
}

fn names_gzip(coding: &str) -> bool {
    let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
    let weight = parameters.trim().strip_prefix("q=").map(str::parse::<f32>);
    let is_rejected = matches!(weight, Some(Ok(0.0)));
    name.trim().eq_ignore_ascii_case("gzip") && !is_rejected
}

/// Sets the headers for a body that is compressed, or that could have been.
pub(super) fn set_headers(response: &mut Builder<'_>, is_packed: bool) {
    response.header(Header::new("Vary", "Accept-Encoding"));
    if is_packed {
        response.header(Header::new("Content-Encoding", "gzip"));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn it_is_compressed_for_clients_that_read_gzip() {
        for (header, takes) in [
            ("gzip", true),
            (" GZIP;q=0.5", true),
            ("gzip; q=0", false),
            ("gzip;q=0.000", false),
            ("br", false),
            ("", false),
        ] {
            assert_eq!(names_gzip(header), takes, "{header}");
        }
    }

    #[test]
    fn it_is_whole_again_when_it_is_unpacked() {
        let text = "<li>all the same</li>".repeat(1_000);
        let packed = gzip(text.as_bytes(), Compression::fast()).unwrap();
        assert!(packed.len() < text.len() / 10);
        let mut again = String::new();
        let mut decoder = flate2::read::GzDecoder::new(packed.as_slice());
        decoder.read_to_string(&mut again).unwrap();
        assert_eq!(again, text);
        assert_eq!(gzip(b"short", Compression::fast()), None);
    }
}
