//! Query strings of every URL that accepts one.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use rocket::http::Method;
use tidings_fuzz::bounds::REQUEST;
use tidings_fuzz::server::LOCAL;
use tidings_fuzz::shapes::{Request, at_once, path, query, visible};

#[derive(Debug)]
struct Asked(Request);

impl<'a> Arbitrary<'a> for Asked {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Asked> {
        let path = path(u)?;
        let accepted = *u.choose(&["application/json", "text/event-stream", "text/html", "*/*"])?;
        let query = match u.ratio(1, 4)? {
            true => format!("?{}", visible(u.arbitrary()?)),
            false => query(u)?,
        };
        Ok(Asked(Request {
            method: Method::Get,
            target: format!("{path}{}", at_once(&path, query)),
            headers: vec![("Accept".to_owned(), accepted.to_owned())],
            body: String::new(),
        }))
    }
}

fuzz_target!(|asked: Asked| {
    let server = &*LOCAL;
    REQUEST.check(asked.0.bytes(), || server.send(&asked.0));
});
