//! A forged token with many configured public keys: how often a signature is checked for an unauthenticated client.

use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::Server;

const COUNTS: [usize; 4] = [1, 4, 16, 64];
/// Length of a signature in bytes, by algorithm.
const ALGORITHMS: [(&str, usize); 2] = [("RS256", 512), ("ES384", 96)];

/// Prints what a forged token costs: without a `kid`, with the `kid` of the last key, and with an unknown `kid`.
pub(crate) fn print() {
    println!("\n| keys | no `kid` | the last key's `kid` | an unknown `kid` |");
    println!("| --- | --- | --- | --- |");
    for (algorithm, signature) in ALGORITHMS {
        for count in COUNTS {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let key = public_key(&folder, algorithm);
            let file = folder.path().join("keys.json");
            std::fs::write(&file, key_set(&key, count).to_string()).expect("it is written");
            let server = Server::start(Some(&file));
            let kids = [
                None,
                Some(format!("k{}", count - 1)),
                Some("none".to_owned()),
            ];
            let costs = kids.map(|kid| {
                let request = request(algorithm, kid, signature);
                let cost = server.cost(&request);
                format!("{:.0} µs ({})", cost.cpu_micros, cost.status)
            });
            println!("| {count} for {algorithm} | {} |", costs.join(" | "));
        }
    }
}

fn request(algorithm: &str, kid: Option<String>, signature: usize) -> Vec<u8> {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let mut header = json!({"alg": algorithm});
    if let Some(kid) = kid {
        header["kid"] = kid.into();
    }
    // A small number, so that the signature is not rejected for its size.
    let forged = vec![1; signature];
    let token = [
        part(header.to_string().as_bytes()),
        part(b"{}"),
        part(&forged),
    ]
    .join(".");
    let head = "GET /api/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer";
    format!("{head} {token}\r\n\r\n").into_bytes()
}

/// Returns a set of `count` copies of the key, each with its own `kid`. The benchmark counts how many are tried.
fn key_set(key: &Value, count: usize) -> Value {
    let named = |number: usize| {
        let mut key = key.clone();
        key["kid"] = format!("k{number}").into();
        key
    };
    json!({ "keys": (0..count).map(named).collect::<Vec<_>>() })
}

/// Returns a public key that OpenSSL has generated, as a JSON Web Key.
fn public_key(folder: &TempDir, algorithm: &str) -> Value {
    let file = folder.path().join("key.pem");
    let kind: &[&str] = match algorithm {
        "RS256" => &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096"],
        _ => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
    };
    let mut make = Command::new("openssl");
    make.arg("genpkey").args(kind).arg("-out").arg(&file);
    assert!(
        make.output()
            .expect("openssl is installed")
            .status
            .success()
    );
    let mut read = Command::new("openssl");
    let der = read
        .args(["pkey", "-pubout", "-outform", "DER", "-in"])
        .arg(&file)
        .output();
    let der = der.expect("openssl reads its key").stdout;
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    match algorithm {
        // The modulus, then the exponent 65,537 in its five bytes.
        "RS256" => {
            let modulus = &der[der.len() - 5 - 512..der.len() - 5];
            json!({"kty": "RSA", "alg": "RS256", "n": part(modulus), "e": "AQAB"})
        }
        // The point, as two coordinates.
        _ => {
            let (x, y) = der[der.len() - 96..].split_at(48);
            json!({"kty": "EC", "crv": "P-384", "alg": "ES384", "x": part(x), "y": part(y)})
        }
    }
}
