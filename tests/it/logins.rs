//! Tokens of an existing login: its names for claims and roles.

mod key_sets;
mod validity;

use serde_json::{Value, json};
use tidings::auth::{Access, Keys, Role, Schools};
use tidings::config::Settings;

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
    let messages = listener.until_ready().await;
    assert_eq!(messages[0]["school_id"], 3);
    assert!(
        messages.iter().all(|message| message["job_id"].is_null()),
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
    assert_eq!(&*access.subject, "42", "a subject that is a number is read");
    let mut none = claims.clone();
    none["realm_access"] = json!({"roles": []});
    assert_eq!(
        read(&settings, none).unwrap_err(),
        "the token is not valid: `/realm_access/roles/0` is missing, and no `jwt_default_role` is set"
    );
    let list = json!({"jwt_role_claim": "roles"});
    let rejected = read(&list, json!({"school_id": 1, "roles": ["admin"]})).unwrap_err();
    assert!(rejected.contains("`roles` is a list"), "{rejected}");
}

/// What each combination of school, schools and role reaches.
#[test]
fn a_default_stands_in_for_what_is_absent_and_null_means_all_schools_where_the_token_says_its_role()
{
    let listed = |all: &[i64]| {
        let schools = all.iter().map(|school| (*school).try_into().unwrap());
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
            Err("`schools` has an entry that is neither a positive integer"),
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
                let rejected = access.unwrap_err();
                assert!(rejected.contains(reason), "{claims} {settings}: {rejected}");
            }
        }
    }
}

#[test]
fn a_school_or_subject_of_another_form_is_rejected_and_named() {
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
        let rejected = read(&json!({}), json!({"school_id": school, "role": "viewer"}));
        let reason = "the token is not valid: `school_id` is neither a positive integer nor a string of its digits";
        assert_eq!(rejected.unwrap_err(), reason, "{school}");
    }
    let rejected = read(
        &json!({}),
        json!({"sub": {}, "school_id": 1, "role": "viewer"}),
    );
    assert!(rejected.unwrap_err().contains("`sub` is neither"));
}

#[test]
fn a_map_says_what_our_own_names_mean_in_another_login() {
    let settings = json!({"jwt_roles": {"admin": "viewer", "root": "admin"}});
    let role = |name: &str| {
        read(&settings, json!({"school_id": 1, "role": name})).map(|caller| caller.role)
    };
    assert_eq!(role("admin"), Ok(Role::Viewer), "the map goes first");
    assert_eq!(role("root"), Ok(Role::Admin));
    assert_eq!(
        role("worker"),
        Ok(Role::Worker),
        "and adds to our own names"
    );
    assert!(role("Root").is_err(), "names are case-sensitive");
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
            .verify(keys.mint(claims(school, role)).unwrap().reveal())
            .unwrap();
        assert_eq!((access.role, &*access.subject), (role, "test"));
        assert_eq!(access.schools, school.map_or(Schools::All, one));
    }
    let nameless = self::keys(&json!({"jwt_roles": {"admin": "viewer"}}));
    let rejected = nameless.mint(claims(Some(1), Role::Admin)).unwrap_err();
    assert!(rejected.to_string().contains("jwt_roles"), "{rejected}");
}

/// In the file and in the environment, as a table and as JSON.
#[test]
#[ignore = "slow: real seconds pass"]
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
