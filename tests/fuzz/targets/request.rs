//! Structured requests, carried out by the real server in this process.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings_fuzz::bounds::REQUEST;
use tidings_fuzz::server::LOCAL;
use tidings_fuzz::shapes::Request;

fuzz_target!(|request: Request| {
    let server = &*LOCAL;
    REQUEST.check(request.bytes(), || server.send(&request));
});
