//! Tokens of an existing login: its names for claims and roles, its keys.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tidings::auth::{Access, Keys, Role, Schools};
use tidings::config::{Settings, TOKEN_MAX_SECS};

use crate::support::*;

fn now() -> i64 {
    chrono::Utc::now().timestamp()
}

/// A token with these claims that is valid for a minute.
fn valid(mut claims: Value) -> String {
    claims["exp"] = json!(now() + 60);
    sign(&claims)
}

fn keys(settings: &Value) -> Keys {
    let folder = tempfile::tempdir().unwrap();
    let figment = figment(&folder, settings);
    Keys::from_settings(&Settings::from_figment(&figment).unwrap()).unwrap()
}

/// What a token lets its bearer do, or why it is refused.
fn read(settings: &Value, claims: Value) -> Result<Access, String> {
    let access = keys(settings).verify(&valid(claims));
    access.map_err(|error| error.to_string())
}

fn one(school: i64) -> Schools {
    Schools::One(school.try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_kinds_of_token_of_an_existing_login_are_let_in_as_the_settings_say() {
    let server = server_with(json!({
        "jwt_roles": {"school_admin": "admin"},
        "jwt_default_role": "viewer",
        "jwt_default_school_id": 3,
    }))
    .await;
    server.running_job("a").await;
    let of_school = json!({"sub": "7", "email": "a@b.example", "school_id": 1, "role": "school_admin", "iat": now(), "typ": "access"});
    let of_school = valid(of_school);
    assert_eq!(server.get("/api/jobs/a", &of_school).await.0, 200);
    assert_eq!(server.get("/api/notifiers", &of_school).await.0, 200);
    assert_eq!(
        server.get("/api/jobs?school_id=3", &of_school).await.0,
        404,
        "and no other school"
    );
    let of_process = json!({"sub": "1", "username": "ann", "type": "access", "iat": now()});
    let of_process = valid(of_process);
    let mut listener = Listener::open(
        Transport::EventSource,
        &server.url,
        "/jobs",
        &of_process,
        None,
    )
    .await;
    let told = listener.until_ready().await;
    assert_eq!(told[0]["school_id"], 3);
    assert!(
        told.iter().all(|message| message["job_id"].is_null()),
        "no event of school 1"
    );
    let job = json!({"job_type": "t"});
    let (status, problem) = server.post("/api/jobs", &of_process, job).await;
    assert_eq!((status, &problem["code"]), (403, &json!("forbidden")));
    // Our own names are valid as before, and no others.
    assert_eq!(server.get("/api/jobs/a", &viewer(1)).await.0, 200);
    let unknown = valid(json!({"school_id": 1, "role": "teacher"}));
    let (status, problem) = server.get("/api/jobs/a", &unknown).await;
    assert_eq!(status, 401);
    assert_eq!(
        problem["detail"],
        "the token is not valid: `role` is not one of viewer, worker, admin, school_admin"
    );
}

#[test]
fn claims_are_found_by_name_or_by_json_pointer() {
    let settings = json!({
        "jwt_school_claim": "https://login.example/school",
        "jwt_role_claim": "/realm_access/roles/0",
        "jwt_subject_claim": "/user/a~1b",
        "jwt_roles": {"realm.head": "admin"},
    });
    let claims = json!({
        "https://login.example/school": "12",
        "realm_access": {"roles": ["realm.head", "offline"]},
        "user": {"a/b": 42},
        // Of the same names as ours, and meant for somebody else.
        "sub": "other", "role": "viewer", "school_id": 9,
    });
    let access = read(&settings, claims.clone()).unwrap();
    assert_eq!(access.schools, one(12), "a school in digits is read");
    assert_eq!(access.role, Role::Admin);
    assert_eq!(access.subject, "42", "a subject that is a number is read");
    let mut none = claims.clone();
    none["realm_access"] = json!({"roles": []});
    assert_eq!(
        read(&settings, none).unwrap_err(),
        "the token is not valid: `/realm_access/roles/0` is missing, and no `jwt_default_role` is set"
    );
    let list = json!({"jwt_role_claim": "roles"});
    let refused = read(&list, json!({"school_id": 1, "roles": ["admin"]})).unwrap_err();
    assert!(refused.contains("`roles` is a list"), "{refused}");
}

/// What each combination of school, schools and role reaches.
#[test]
fn a_default_stands_in_for_what_is_absent_and_null_means_all_schools_where_the_token_says_its_role()
{
    let listed = |all: &[i64]| {
        let schools = all.iter().map(|own| (*own).try_into().unwrap());
        Ok(Schools::Listed(schools.collect()))
    };
    let none = json!({});
    let defaults = json!({"jwt_default_role": "worker", "jwt_default_school_id": 5, "jwt_roles": {"head": "admin"}});
    let mapped = json!({"jwt_roles": {"head": "admin"}});
    let foreign = json!({"jwt_school_claim": "tenant", "jwt_roles": {"head": "admin"}});
    let only_role = json!({"jwt_default_role": "admin"});
    for (settings, claims, expected) in [
        (&none, json!({"school_id": 1, "role": "viewer"}), Ok(one(1))),
        (
            &none,
            json!({"school_id": "1", "role": "viewer"}),
            Ok(one(1)),
        ),
        (
            &none,
            json!({"school_id": null, "role": "admin"}),
            Ok(Schools::All),
        ),
        (
            &none,
            json!({"school_id": null, "role": "worker"}),
            Ok(Schools::All),
        ),
        (
            &none,
            json!({"school_id": null, "role": "viewer"}),
            Err("`school_id` is null"),
        ),
        (&none, json!({"role": "admin"}), Ok(Schools::All)),
        (
            &none,
            json!({"role": "worker"}),
            Err("`school_id` is missing"),
        ),
        (&none, json!({"school_id": 1}), Err("`role` is missing")),
        (
            &none,
            json!({"school_id": null, "schools": [2, "1", 2], "role": "worker"}),
            listed(&[1, 2]),
        ),
        (
            &none,
            json!({"schools": [2, 1], "role": "viewer"}),
            listed(&[1, 2]),
        ),
        (&none, json!({"schools": [2], "role": "viewer"}), Ok(one(2))),
        (
            &none,
            json!({"school_id": 1, "schools": [1, 2], "role": "viewer"}),
            Ok(one(1)),
        ),
        (
            &none,
            json!({"school_id": 3, "schools": [1, 2], "role": "admin"}),
            Err("`school_id` is not one of `schools`"),
        ),
        (
            &none,
            json!({"school_id": null, "schools": [], "role": "admin"}),
            Err("`schools` is an empty list; it must name at least one school"),
        ),
        (
            &none,
            json!({"school_id": null, "schools": [1, 0], "role": "admin"}),
            Err("`schools` has an entry that is neither a whole number"),
        ),
        (
            &none,
            json!({"school_id": null, "schools": "1,2", "role": "admin"}),
            Err("`schools` is neither a list of school ids nor"),
        ),
        (
            &none,
            json!({"school_id": null, "schools": vec![1; 1_001], "role": "admin"}),
            Err("`schools` names more than 1000"),
        ),
        (&defaults, json!({}), Ok(one(5))),
        (&defaults, json!({"role": null}), Ok(one(5))),
        (&defaults, json!({"school_id": null}), Ok(one(5))),
        (&defaults, json!({"school_id": 1}), Ok(one(1))),
        (&defaults, json!({"role": "admin"}), Ok(one(5))),
        (
            &defaults,
            json!({"role": "admin", "school_id": null}),
            Ok(Schools::All),
        ),
        (
            &defaults,
            json!({"role": "head", "school_id": null}),
            Ok(one(5)),
        ),
        (
            &mapped,
            json!({"role": "head", "school_id": null}),
            Ok(Schools::All),
        ),
        (
            &none,
            json!({"role": "worker", "school_id": null, "schools": "all"}),
            Ok(Schools::All),
        ),
        (
            &defaults,
            json!({"role": "viewer", "school_id": null}),
            Err("`school_id` is null"),
        ),
        (&defaults, json!({"schools": [7, 8]}), listed(&[7, 8])),
        (&only_role, json!({}), Err("`school_id` is missing")),
        (
            &only_role,
            json!({"school_id": null}),
            Err("`school_id` is missing"),
        ),
        (
            &foreign,
            json!({"role": "head", "tenant": null}),
            Err("`tenant` is missing"),
        ),
        (
            &foreign,
            json!({"role": "head"}),
            Err("`tenant` is missing"),
        ),
        (
            &foreign,
            json!({"role": "admin", "tenant": null}),
            Ok(Schools::All),
        ),
        (
            &foreign,
            json!({"role": "head", "tenant": 4, "school_id": null}),
            Ok(one(4)),
        ),
    ] {
        let access = read(settings, claims.clone()).map(|access| access.schools);
        match expected {
            Ok(expected) => assert_eq!(access, Ok(expected), "{claims} {settings}"),
            Err(reason) => {
                let refused = access.unwrap_err();
                assert!(refused.contains(reason), "{claims} {settings}: {refused}");
            }
        }
    }
}

#[test]
fn a_school_or_subject_of_another_form_is_refused_and_named() {
    for school in [
        json!(0),
        json!(-1),
        json!(1.5),
        json!("0"),
        json!("+1"),
        json!("1 "),
        json!(""),
        json!("one"),
        json!(true),
        json!([1]),
        json!({"id": 1}),
    ] {
        let refused = read(&json!({}), json!({"school_id": school, "role": "viewer"}));
        let reason = "the token is not valid: `school_id` is neither a whole number of 1 or more nor a string of its digits";
        assert_eq!(refused.unwrap_err(), reason, "{school}");
    }
    let refused = read(
        &json!({}),
        json!({"sub": {}, "school_id": 1, "role": "viewer"}),
    );
    assert!(refused.unwrap_err().contains("`sub` is neither"));
}

#[test]
fn a_map_says_what_our_own_names_mean_in_another_login() {
    let settings = json!({"jwt_roles": {"admin": "viewer", "root": "admin"}});
    let role =
        |name: &str| read(&settings, json!({"school_id": 1, "role": name})).map(|own| own.role);
    assert_eq!(role("admin"), Ok(Role::Viewer), "the map goes first");
    assert_eq!(role("root"), Ok(Role::Admin));
    assert_eq!(
        role("worker"),
        Ok(Role::Worker),
        "and adds to our own names"
    );
    assert!(role("Root").is_err(), "names are told apart by case");
}

#[test]
fn a_token_that_is_made_here_is_read_here_whatever_claims_and_roles_are_called() {
    let settings = json!({
        "jwt_school_claim": "/realm/school/0",
        "jwt_role_claim": "/realm/role",
        "jwt_subject_claim": "name",
        "jwt_roles": {"admin": "viewer", "root": "admin"},
    });
    let keys = keys(&settings);
    for (school, role) in [
        (Some(4), Role::Admin),
        (Some(4), Role::Viewer),
        (None, Role::Worker),
    ] {
        let access = keys
            .verify(&keys.mint(claims(school, role)).unwrap())
            .unwrap();
        assert_eq!((access.role, &*access.subject), (role, "test"));
        assert_eq!(access.schools, school.map_or(Schools::All, one));
    }
    let nameless = self::keys(&json!({"jwt_roles": {"admin": "viewer"}}));
    let refused = nameless.mint(claims(Some(1), Role::Admin)).unwrap_err();
    assert!(refused.to_string().contains("jwt_roles"), "{refused}");
}

#[test]
fn a_refresh_token_is_no_access_token() {
    let claims = |name: &str, value: &str| {
        let mut claims = json!({"school_id": 1, "role": "viewer"});
        claims[name] = json!(value);
        claims
    };
    for name in ["type", "typ", "token_type", "token_use"] {
        for value in ["refresh", "Refresh", "refresh_token"] {
            let refused = read(&json!({}), claims(name, value)).unwrap_err();
            assert!(refused.contains(&format!("`{name}`")), "{refused}");
        }
        assert!(read(&json!({}), claims(name, "access")).is_ok());
    }
}

#[test]
fn clocks_may_differ_by_five_seconds_unless_the_settings_say_otherwise() {
    let judged = |settings: &Value, claims: Value| {
        let mut all = json!({"school_id": 1, "role": "viewer", "exp": now() + 60});
        for (name, value) in claims.as_object().unwrap() {
            all[name] = value.clone();
        }
        let access = keys(settings).verify(&sign(&all));
        access.map(|_| ()).map_err(|error| error.to_string())
    };
    let default = json!({});
    assert_eq!(judged(&default, json!({"nbf": now() + 4})), Ok(()));
    assert_eq!(
        judged(&default, json!({"iat": now() + 4, "nbf": null})),
        Ok(())
    );
    assert_eq!(judged(&default, json!({"exp": now() - 2})), Ok(()));
    let none = json!({"jwt_leeway_secs": 0});
    for (settings, claims, word) in [
        (&none, json!({"nbf": now() + 30}), "`nbf` is "),
        (&none, json!({"iat": now() + 30}), "`iat` is "),
        (&none, json!({"exp": now() - 1}), "`exp` was "),
        (
            &default,
            json!({"nbf": now() + 90}),
            " s in the future; clocks may differ by at most 5 s (`jwt_leeway_secs`)",
        ),
        (&default, json!({"iat": now() + 90}), " s in the future"),
        (
            &default,
            json!({"exp": now() - 90}),
            "the token has expired: `exp` was 9",
        ),
        (&default, json!({"exp": null}), "`exp` is missing"),
        (&default, json!({"exp": "soon"}), "`exp` is not a number"),
        (&default, json!({"iat": "now"}), "`iat` is not a number"),
    ] {
        let refused = judged(settings, claims.clone()).unwrap_err();
        assert!(refused.contains(word), "{claims}: {refused}");
    }
}

#[test]
fn a_token_of_any_times_is_judged_and_none_lasts_longer_than_the_setting() {
    // As text, so that every form of a number reaches the server as it is.
    let judged = |settings: &Value, times: &str| {
        let claims = format!(r#"{{"school_id":1,"role":"viewer",{times}}}"#);
        let part = |text: &[u8]| URL_SAFE_NO_PAD.encode(text);
        let message = format!(
            "{}.{}",
            part(br#"{"alg":"HS256"}"#),
            part(claims.as_bytes())
        );
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        let algorithm = jsonwebtoken::Algorithm::HS256;
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
        let access = keys(settings).verify(&format!("{message}.{signature}"));
        access.map_err(|error| error.to_string())
    };
    let soon = now() + 60;
    for leeway in [0, 86_400] {
        let settings = json!({"jwt_leeway_secs": leeway, "max_token_secs": TOKEN_MAX_SECS});
        for exp in ["9999999999", "4102444800.5", "4.1e9", &format!("{soon}.25")] {
            let access = judged(&settings, &format!(r#""exp":{exp}"#)).unwrap();
            let ends = access.expires_at.unwrap().timestamp_millis() as f64 / 1e3;
            assert_eq!(
                ends,
                exp.parse::<f64>().unwrap() + f64::from(leeway),
                "{exp}"
            );
        }
        for (exp, word) in [
            ("1e300", "(`max_token_secs`)"),
            ("9223372036854775808", "(`max_token_secs`)"),
            ("18446744073709551616", "(`max_token_secs`)"),
            ("253402300799", "(`max_token_secs`)"),
            (&*format!("{}000", soon), "(`max_token_secs`)"),
            ("-1e300", "has expired: `exp` was 1000000000000 s ago"),
            ("-9223372036854775808", "has expired"),
            ("0", "has expired"),
            ("-0.0", "has expired"),
            ("1e400", "its claims are not a JSON object"),
            ("\"1e300\"", "is not a number of seconds"),
            ("\"4102444800\"", "is not a number of seconds"),
            ("[4102444800]", "is not a number of seconds"),
            ("true", "is not a number of seconds"),
        ] {
            let refused = judged(&settings, &format!(r#""exp":{exp}"#)).unwrap_err();
            assert!(refused.contains(word), "{exp}: {refused}");
        }
        for name in ["nbf", "iat"] {
            for (value, is_sound) in [
                ("1e300", false),
                ("9223372036854775808", false),
                ("-1e300", true),
                ("-9223372036854775808", true),
                ("1.5", true),
                ("\"1\"", false),
                ("{}", false),
            ] {
                let times = format!(r#""exp":{soon},"{name}":{value}"#);
                let judged = judged(&settings, &times);
                assert_eq!(judged.is_ok(), is_sound, "{name} {value}: {judged:?}");
                assert!(judged.err().is_none_or(|told| told.len() < 200));
            }
        }
    }
    let (default, years) = (json!({}), 10 * 31_557_600);
    assert!(judged(&default, &format!(r#""exp":{}"#, now() + years - 60)).is_ok());
    for exp in [now() + years + 60, 9_999_999_999] {
        let refused = judged(&default, &format!(r#""exp":{exp}"#)).unwrap_err();
        let told = "is more than 315576000 s in the future (`max_token_secs`)";
        assert!(refused.contains(told), "{refused}");
    }
    let day = json!({"max_token_secs": 86_400});
    assert!(judged(&day, &format!(r#""exp":{}"#, now() + 86_000)).is_ok());
    assert!(judged(&day, &format!(r#""exp":{}"#, now() + 86_500)).is_err());
    let mut long = claims(Some(1), Role::Viewer);
    long.exp = (now() + 90_000) as f64;
    let refused = keys(&day).mint(long).unwrap_err().to_string();
    assert!(
        refused.contains("`max_token_secs` allows at most 86400 s"),
        "{refused}"
    );
}

/// RFC 7515, 4.1.11.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_a_critical_extension_is_refused() {
    let server = server().await;
    let signed = |crit: Option<Vec<String>>| {
        let header = Header {
            crit,
            ..Header::default()
        };
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        encode(&header, &claims(Some(1), Role::Viewer), &key).unwrap()
    };
    assert_eq!(server.get("/api/jobs", &signed(None)).await.0, 200);
    for crit in [vec!["b64".to_owned()], vec!["exp".into()], vec![]] {
        let (status, problem) = server.get("/api/jobs", &signed(Some(crit))).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == 401 && detail.contains("`crit`"), "{problem}");
    }
}

/// In the file and in the environment, as a table and as JSON.
#[test]
fn roles_are_mapped_from_the_file_and_from_the_environment() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let token = valid(json!({"uid": 5, "org": {"school": "1"}, "role": "school_admin"}));
    let file =
        "[default.tidings]\njwt_school_claim = \"/org/school\"\njwt_subject_claim = \"uid\"\n";
    let roles = "[default.tidings.jwt_roles]\nschool_admin = \"admin\"\n";
    for (text, environment) in [
        (format!("{file}{roles}"), None),
        (file.to_owned(), Some(r#"{school_admin="admin"}"#)),
        (file.to_owned(), Some(r#"{"school_admin": "admin"}"#)),
        (format!("{file}{roles}"), Some("")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("Rocket.toml"), text).unwrap();
        let mut command = process::command(folder.path());
        command.arg("serve");
        if let Some(environment) = environment {
            command.env("TIDINGS_JWT_ROLES", environment);
        }
        let server = process::Process::start(&mut command);
        let url = format!("{}/api/notifiers", server.url);
        let request = reqwest::Client::new().get(url).bearer_auth(&token);
        let (status, answer) = runtime.block_on(answer(request));
        assert_eq!(status, 200, "{environment:?}: {answer}");
    }
}

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
fn a_token_is_verified_with_the_key_of_its_kid_or_with_those_that_fit() {
    if !needs("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let pair = |kid: &str, algorithm| Pair::new(folder.path(), kid, algorithm);
    let refused = |keys: &Keys, token: &str| keys.verify(token).unwrap_err().to_string();
    let pairs = [
        pair("r", Algorithm::RS256),
        pair("p", Algorithm::PS384),
        pair("e", Algorithm::ES256),
        pair("f", Algorithm::ES384),
        pair("d", Algorithm::EdDSA),
    ];
    let publics: Vec<Value> = pairs.iter().map(|own| own.public.clone()).collect();
    let keys = keys_of(folder.path(), &set(&publics)).unwrap();
    for own in &pairs {
        let kid = own.public["kid"].as_str().unwrap();
        assert!(keys.verify(&own.sign(Some(kid))).is_ok(), "{kid}");
        assert!(keys.verify(&own.sign(None)).is_ok(), "{kid} without a kid");
        assert!(refused(&keys, &own.sign(Some("x"))).contains("`kid`"));
    }
    // A key's own algorithm is the only one that it is used for.
    let other = refused(&keys, &pairs[0].sign_as(Algorithm::PS384, Some("r")));
    assert!(other.contains("`kid`"), "{other}");
    let other = refused(&keys, &pairs[0].sign_as(Algorithm::RS512, Some("r")));
    assert_eq!(
        other,
        "the token is not valid: its algorithm (`alg`), RS512, is not accepted here; accepted: RS256, PS384, ES256, ES384, EdDSA"
    );
    let wrong = refused(&keys, &pair("r2", Algorithm::RS256).sign(Some("r")));
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
    assert!(refused(&keys, &second.sign(Some("e"))).contains("signature"));
}

#[test]
fn a_token_that_names_no_key_is_tried_with_few() {
    if !needs("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let own = Pair::new(folder.path(), "own", Algorithm::ES256);
    let other = Pair::new(folder.path(), "other", Algorithm::ES256);
    let with = |count: usize, names: &[&str]| {
        let mut publics = vec![other.without(names); count];
        publics.push(own.without(names));
        keys_of(folder.path(), &set(&publics)).unwrap()
    };
    for names in [&[][..], &["kid"]] {
        assert!(with(3, names).verify(&own.sign(None)).is_ok());
        let refused = with(4, names).verify(&own.sign(None)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the token is not valid: 5 keys in `jwt_jwks_file` may have signed it, and at most 4 are tried: its header must name a key in `kid`"
        );
    }
    assert!(with(63, &[]).verify(&own.sign(Some("own"))).is_ok());
    // Keys that share a name are as many.
    let refused = with(5, &[]).verify(&other.sign(Some("other")));
    assert!(refused.unwrap_err().to_string().contains("at most 4"));
}

#[test]
fn a_symmetric_key_or_one_for_another_use_verifies_nothing() {
    if !needs("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let own = Pair::new(folder.path(), "e", Algorithm::ES256);
    let rsa = Pair::new(folder.path(), "r", Algorithm::RS256);
    let changed = |name: &str, value: Value| {
        let mut public = own.public.clone();
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
        (own.without(&["y"]), "missing"),
        (
            json!({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}),
            "32 bytes",
        ),
        (json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"}), "2048"),
        (json!("text"), "`kty`"),
    ] {
        let Err(refused) = keys_of(folder.path(), &set(std::slice::from_ref(&unusable))) else {
            panic!("{unusable} is used");
        };
        assert!(refused.contains("jwt_jwks_file"), "{refused}");
        assert!(refused.contains(reason), "{unusable}: {refused}");
        // Beside one that is sound it hinders nobody.
        let keys = keys_of(folder.path(), &set(&[unusable, rsa.public.clone()])).unwrap();
        assert!(keys.verify(&rsa.sign(Some("r"))).is_ok());
        assert!(keys.verify(&own.sign(Some("e"))).is_err());
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
        let refused = keys.verify(&token).unwrap_err().to_string();
        assert!(refused.contains("HS256, is not accepted"), "{refused}");
    }
    let refused = keys.mint(claims(Some(1), Role::Admin)).unwrap_err();
    assert!(refused.to_string().contains("jwt_jwks_file"));
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
        let refused = keys_of(folder.path(), text).err().unwrap();
        assert!(refused.contains("jwt_jwks_file"), "{refused}");
        assert!(refused.contains(reason), "{refused}");
    }
}

#[test]
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
