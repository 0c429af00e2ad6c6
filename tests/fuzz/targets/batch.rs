//! Bodies of batches: each line has a result, and none of them is a server error.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use rocket::http::Method;
use serde_json::Value;
use tidings_fuzz::bounds::REQUEST;
use tidings_fuzz::server::{LOCAL, assert_sound};
use tidings_fuzz::shapes::{Request, command};

#[derive(Debug)]
struct Batch(Vec<String>);

impl<'a> Arbitrary<'a> for Batch {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Batch> {
        let count = u.int_in_range(0..=12)?;
        let line = |_| match u.ratio(1, 6)? {
            true => Ok(u.arbitrary::<&str>()?.to_owned()),
            false => command(u),
        };
        Ok(Batch((0..count).map(line).collect::<Result<_>>()?))
    }
}

fuzz_target!(|batch: Batch| {
    let server = &*LOCAL;
    let request = Request {
        method: Method::Post,
        target: "/api/batch".to_owned(),
        headers: vec![("Content-Type".to_owned(), "application/x-ndjson".to_owned())],
        body: batch.0.join("\n"),
    };
    let (status, answer) = REQUEST.check(request.bytes(), || server.send(&request));
    if status != 200 {
        return;
    }
    let answer = String::from_utf8(answer).expect("JSON is UTF-8");
    let lines = request
        .body
        .split('\n')
        .filter(|line| !line.trim_ascii().is_empty());
    assert_eq!(answer.lines().count(), lines.count(), "{answer}");
    for line in answer.lines() {
        let result: Value = serde_json::from_str(line).expect("a line is JSON");
        let status = result["status"]
            .as_u64()
            .and_then(|status| status.try_into().ok());
        assert_sound(status.expect("a result has a status"), line);
    }
});
