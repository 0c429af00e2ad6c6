//! The keys of an existing login: which key verifies a token, and what happens when their file changes.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tidings::auth::{Keys, Role};
use tidings::config::Settings;

use crate::support::*;

/// A private key, and its public half as an entry of a key set.
struct Pair {
    private: EncodingKey,
    algorithm: Algorithm,
    public: Value,
}

impl Pair {
    fn new(folder: &Path, kid: &str, algorithm: Algorithm) -> Pair {
        let file = folder.join(format!("{kid}.pem"));
        let generate: &[&str] = match algorithm {
            Algorithm::ES256 => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Algorithm::ES384 => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
            Algorithm::EdDSA => &["-algorithm", "ed25519"],
            _ => &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        };
        let made = Command::new("openssl")
            .arg("genpkey")
            .args(generate)
            .arg("-out")
            .arg(&file)
            .output();
        assert!(made.unwrap().status.success());
        let pem = std::fs::read(&file).unwrap();
        let private = match algorithm {
            Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(&pem),
            Algorithm::EdDSA => EncodingKey::from_ed_pem(&pem),
            _ => EncodingKey::from_rsa_pem(&pem),
        }
        .unwrap();
        let mut public = json!(Jwk::from_encoding_key(&private, algorithm).unwrap());
        public["kid"] = json!(kid);
        Pair {
            private,
            algorithm,
            public,
        }
    }

    /// Without some of its members.
    fn without(&self, names: &[&str]) -> Value {
        let mut public = self.public.clone();
        for name in names {
            public.as_object_mut().unwrap().remove(*name);
        }
        public
    }

    fn sign(&self, kid: Option<&str>) -> String {
        self.sign_as(self.algorithm, kid)
    }

    fn sign_as(&self, algorithm: Algorithm, kid: Option<&str>) -> String {
        let header = Header {
            kid: kid.map(str::to_owned),
            ..Header::new(algorithm)
        };
        encode(&header, &claims(Some(1), Role::Viewer), &self.private).unwrap()
    }
}

fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

/// Keys as they are read from such a file.
fn keys_of(folder: &Path, text: &str) -> Result<Keys, String> {
    let file = folder.join("jwks.json");
    std::fs::write(&file, text).unwrap();
    let settings = Settings {
        data_dir: folder.to_owned(),
        jwt_secret: Some(SECRET.into()),
        jwt_jwks_file: Some(file),
        ..Settings::default()
    };
    Keys::from_settings(&settings).map_err(|error| error.to_string())
}

#[test]
#[ignore = "slow: real seconds pass"]
fn a_token_is_verified_with_the_key_of_its_kid_or_with_those_that_fit() {
    if !needs("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let pair = |kid: &str, algorithm| Pair::new(folder.path(), kid, algorithm);
    let rejected = |keys: &Keys, token: &str| keys.verify(token).unwrap_err().to_string();
    let pairs = [
        pair("r", Algorithm::RS256),
        pair("p", Algorithm::PS384),
        pair("e", Algorithm::ES256),
        pair("f", Algorithm::ES384),
        pair("d", Algorithm::EdDSA),
    ];
    let publics: Vec<Value> = pairs.iter().map(|pair| pair.public.clone()).collect();
    let keys = keys_of(folder.path(), &set(&publics)).unwrap();
    for pair in &pairs {
        let kid = pair.public["kid"].as_str().unwrap();
        assert!(keys.verify(&pair.sign(Some(kid))).is_ok(), "{kid}");
        assert!(keys.verify(&pair.sign(None)).is_ok(), "{kid} without a kid");
        assert!(rejected(&keys, &pair.sign(Some("x"))).contains("`kid`"));
    }
    // A key's own algorithm is the only one that it is used for.
    let other = rejected(&keys, &pairs[0].sign_as(Algorithm::PS384, Some("r")));
    assert!(other.contains("`kid`"), "{other}");
    let other = rejected(&keys, &pairs[0].sign_as(Algorithm::RS512, Some("r")));
    assert_eq!(
        other,
        "the token is not valid: its algorithm (`alg`), RS512, is not accepted here; accepted: RS256, PS384, ES256, ES384, EdDSA"
    );
    let wrong = rejected(&keys, &pair("r2", Algorithm::RS256).sign(Some("r")));
    assert!(wrong.contains("signature"), "{wrong}");
    // Without `alg` it is used for all that its type is for, without `kid` for any token.
    let open = [
        pairs[0].without(&["alg", "kid"]),
        pairs[2].without(&["alg"]),
    ];
    let keys = keys_of(folder.path(), &set(&open)).unwrap();
    for algorithm in [Algorithm::RS256, Algorithm::RS512, Algorithm::PS256] {
        assert!(keys.verify(&pairs[0].sign_as(algorithm, Some("y"))).is_ok());
    }
    assert!(keys.verify(&pairs[2].sign(Some("e"))).is_ok());
    // Two of one algorithm: each is tried.
    let second = pair("e2", Algorithm::ES256);
    let both = set(&[pairs[2].public.clone(), second.public.clone()]);
    let keys = keys_of(folder.path(), &both).unwrap();
    assert!(keys.verify(&second.sign(None)).is_ok());
    assert!(rejected(&keys, &second.sign(Some("e"))).contains("signature"));
}

#[test]
fn a_token_that_names_no_key_is_tried_with_few() {
    if !needs("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let signer = Pair::new(folder.path(), "own", Algorithm::ES256);
    let other = Pair::new(folder.path(), "other", Algorithm::ES256);
    let with = |count: usize, names: &[&str]| {
        let mut publics = vec![other.without(names); count];
        publics.push(signer.without(names));
        keys_of(folder.path(), &set(&publics)).unwrap()
    };
    for names in [&[][..], &["kid"]] {
        assert!(with(3, names).verify(&signer.sign(None)).is_ok());
        let rejected = with(4, names).verify(&signer.sign(None)).unwrap_err();
        assert_eq!(
            rejected.to_string(),
            "the token is not valid: 5 keys in `jwt_jwks_file` may have signed it, and at most 4 are tried: its header must name a key in `kid`"
        );
    }
    assert!(with(63, &[]).verify(&signer.sign(Some("own"))).is_ok());
    // Keys that share a name are as many.
    let rejected = with(5, &[]).verify(&other.sign(Some("other")));
    assert!(rejected.unwrap_err().to_string().contains("at most 4"));
}

#[test]
fn a_symmetric_key_or_one_for_another_use_verifies_nothing() {
    if !needs("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let signer = Pair::new(folder.path(), "e", Algorithm::ES256);
    let rsa = Pair::new(folder.path(), "r", Algorithm::RS256);
    let changed = |name: &str, value: Value| {
        let mut public = signer.public.clone();
        public[name] = value;
        public
    };
    let oct = json!({"kty": "oct", "kid": "o", "alg": "HS256", "k": "YSBzZWNyZXQgZm9yIHRlc3RzIG9ubHksIGxvbmcgZW5vdWdoIGZvciBIUzI1Ng"});
    for (unusable, reason) in [
        (oct.clone(), "symmetric"),
        (changed("use", json!("enc")), "`use`"),
        (changed("key_ops", json!(["sign"])), "`key_ops`"),
        (changed("alg", json!("RS256")), "`alg`"),
        (changed("alg", json!("HS256")), "`alg`"),
        (changed("crv", json!("secp256k1")), "`crv`"),
        (changed("x", json!("AAAA")), "curve"),
        (changed("x", json!("not base64!")), "base64url"),
        (signer.without(&["y"]), "missing"),
        (
            json!({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}),
            "32 bytes",
        ),
        (json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"}), "2048"),
        (json!("text"), "`kty`"),
    ] {
        let Err(rejected) = keys_of(folder.path(), &set(std::slice::from_ref(&unusable))) else {
            panic!("{unusable} is used");
        };
        assert!(rejected.contains("jwt_jwks_file"), "{rejected}");
        assert!(rejected.contains(reason), "{unusable}: {rejected}");
        // Beside one that is sound it hinders nobody.
        let keys = keys_of(folder.path(), &set(&[unusable, rsa.public.clone()])).unwrap();
        assert!(keys.verify(&rsa.sign(Some("r"))).is_ok());
        assert!(keys.verify(&signer.sign(Some("e"))).is_err());
    }
    // Neither the symmetric key, nor the secret, nor a public key is an HMAC secret.
    let keys = keys_of(folder.path(), &set(&[oct, rsa.public.clone()])).unwrap();
    let modulus = rsa.public["n"].as_str().unwrap();
    for secret in [SECRET.as_bytes(), modulus.as_bytes(), set(&[]).as_bytes()] {
        let header = Header {
            kid: Some("r".into()),
            ..Header::default()
        };
        let key = EncodingKey::from_secret(secret);
        let token = encode(&header, &claims(Some(1), Role::Admin), &key).unwrap();
        let rejected = keys.verify(&token).unwrap_err().to_string();
        assert!(rejected.contains("HS256, is not accepted"), "{rejected}");
    }
    let rejected = keys.mint(claims(Some(1), Role::Admin)).unwrap_err();
    assert!(rejected.to_string().contains("jwt_jwks_file"));
}

#[test]
fn a_file_that_is_no_set_of_keys_prevents_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let many = set(&vec![json!({}); 65]);
    let long = " ".repeat(256 * 1024 + 1);
    for (text, reason) in [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "is not a JSON Web Key Set"),
        (r#"{"keys": {}}"#, "is not a JSON Web Key Set"),
        (r#"{"keys": []}"#, "holds no public key"),
        (many.as_str(), "more than 64 keys"),
        (long.as_str(), "more than 262144 bytes"),
    ] {
        let rejected = keys_of(folder.path(), text).err().unwrap();
        assert!(rejected.contains("jwt_jwks_file"), "{rejected}");
        assert!(rejected.contains(reason), "{rejected}");
    }
}

#[test]
#[ignore = "slow: real seconds pass"]
fn keys_are_taken_over_when_their_file_changes_and_streams_that_are_open_go_on() {
    if !needs("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let old = Pair::new(folder.path(), "old", Algorithm::ES256);
    let new = Pair::new(folder.path(), "new", Algorithm::ES256);
    let file = folder.path().join("jwks.json");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write(&set(std::slice::from_ref(&old.public)));
    let mut server = process::Process::start(
        process::command(folder.path())
            .arg("serve")
            .env("TIDINGS_JWT_JWKS_FILE", &file),
    );
    let mut log = BufReader::new(server.stderr()).lines().map(Result::unwrap);
    let mut logged = |text: &str| {
        assert!(
            log.any(|line| line.contains(text)),
            "not in the log: {text}"
        );
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let http = reqwest::Client::new();
        let status = async |token: String| {
            let request = http.get(format!("{}/api/jobs", server.url));
            answer(request.bearer_auth(token)).await.0
        };
        let token = old.sign(Some("old"));
        let mut open =
            Listener::open(Transport::WebSocket, &server.url, "/jobs", &token, None).await;
        open.until_ready().await;
        assert_eq!(status(new.sign(Some("new"))).await, 401);
        // What is broken, too large or gone changes nothing.
        write("{\"keys\": [");
        logged("the previous keys stay in force");
        assert_eq!(status(old.sign(Some("old"))).await, 200);
        std::fs::remove_file(&file).unwrap();
        logged("the previous keys stay in force");
        assert_eq!(status(old.sign(None)).await, 200);
        // A ticket is a matter of this server's own, whatever the keys are.
        let request = http.post(format!("{}/api/tickets", server.url));
        let request = request.bearer_auth(old.sign(None));
        let (made, ticket) = answer(request.json(&json!({"channels": ["jobs"]}))).await;
        assert_eq!(made, 201, "{ticket}");
        write(&set(std::slice::from_ref(&new.public)));
        logged("has changed");
        assert_eq!(status(new.sign(Some("new"))).await, 200);
        assert_eq!(status(old.sign(Some("old"))).await, 401);
        assert_eq!(status(old.sign(None)).await, 401);
        let url = format!("{}{}&wait=0", server.url, ticket["url"].as_str().unwrap());
        let polled = http.get(url).header("Accept", "application/json");
        assert_eq!(answer(polled).await.0, 200);
        // A set without keys is what it says.
        write(&set(&[]));
        logged("every token is rejected");
        assert_eq!(status(new.sign(Some("new"))).await, 401);
        drop(open);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_key_that_was_removed_ends_with_its_token() {
    if !needs("openssl") {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let old = Pair::new(folder.path(), "old", Algorithm::EdDSA);
    let new = Pair::new(folder.path(), "new", Algorithm::EdDSA);
    let file = folder.path().join("jwks.json");
    std::fs::write(&file, set(&[old.public.clone(), new.public.clone()])).unwrap();
    let server = server_in(Arc::clone(&folder), json!({"jwt_jwks_file": file})).await;
    let token = old.sign(Some("old"));
    let mut open = Listener::open(Transport::EventSource, &server.url, "/jobs", &token, None).await;
    open.until_ready().await;
    std::fs::write(&file, set(std::slice::from_ref(&new.public))).unwrap();
    until("the old key is out of force", async || {
        server.get("/api/jobs", &token).await.0 == 401
    })
    .await;
    let mut claims = claims(Some(1), Role::Worker);
    claims.sub = "w".into();
    let header = Header {
        kid: Some("new".into()),
        ..Header::new(Algorithm::EdDSA)
    };
    let worker = encode(&header, &claims, &new.private).unwrap();
    let job = json!({"job_id": "a", "job_type": "t"});
    assert_eq!(server.post("/api/jobs", &worker, job).await.0, 201);
    assert_eq!(open.next().await.unwrap()["job_id"], "a", "it goes on");
}
