//! The tables of `migrations/postgres/`, for Diesel.

diesel::table! {
    schools (school_id) {
        school_id -> BigInt,
        stamp -> BigInt,
        head -> BigInt,
        head_tag -> Nullable<BigInt>,
        floor -> BigInt,
        floor_tag -> Nullable<BigInt>,
        bytes -> BigInt,
        answer_bytes -> BigInt,
        uptime -> BigInt,
    }
}

diesel::table! {
    events (school_id, seq) {
        school_id -> BigInt,
        seq -> BigInt,
        kind -> Text,
        subject_id -> Text,
        name -> Text,
        milestone -> Bool,
        wide -> Bool,
        status -> Text,
        category -> Nullable<Text>,
        at -> BigInt,
        fields -> Text,
    }
}

diesel::table! {
    subjects (school_id, kind, subject_id) {
        school_id -> BigInt,
        kind -> Text,
        subject_id -> Text,
        status -> Text,
        category -> Nullable<Text>,
        holds -> Nullable<Text>,
        stalled -> Bool,
        created_at -> BigInt,
        finished_at -> Nullable<BigInt>,
        check_uptime -> Nullable<BigInt>,
        created_seq -> BigInt,
        last_seq -> BigInt,
        last_tag -> Nullable<BigInt>,
        last_at -> BigInt,
        told_seq -> BigInt,
        also_told_seq -> Nullable<BigInt>,
        past -> Nullable<Text>,
        texts -> Nullable<Text>,
        state -> Text,
    }
}

diesel::table! {
    parts (school_id, kind, subject_id, number) {
        school_id -> BigInt,
        kind -> Text,
        subject_id -> Text,
        number -> BigInt,
        own_id -> Nullable<Text>,
        seq -> BigInt,
        closed_at -> Nullable<BigInt>,
        part -> Text,
    }
}

diesel::table! {
    counts (school_id, what, status) {
        school_id -> BigInt,
        what -> Text,
        status -> Text,
        count -> BigInt,
    }
}

diesel::table! {
    endings (school_id, kind, hour, status) {
        school_id -> BigInt,
        kind -> Text,
        hour -> BigInt,
        status -> Text,
        count -> BigInt,
    }
}

diesel::table! {
    idempotency_keys (school_id, key) {
        school_id -> BigInt,
        key -> Text,
        fingerprint -> Text,
        kind -> Text,
        subject_id -> Text,
        seq -> BigInt,
        created_at -> BigInt,
        answer -> Nullable<Text>,
    }
}

diesel::table! {
    notifiers (name) {
        name -> Text,
        not_before -> Nullable<BigInt>,
    }
}

diesel::table! {
    notifier_cursors (school_id, name) {
        school_id -> BigInt,
        name -> Text,
        seq -> BigInt,
        delivered -> BigInt,
        failed -> BigInt,
        dead -> BigInt,
        tried_seq -> Nullable<BigInt>,
        attempts -> BigInt,
        delivered_at -> Nullable<BigInt>,
        failed_at -> Nullable<BigInt>,
        cause -> Nullable<Text>,
    }
}

diesel::table! {
    notifier_set_aside (school_id, name, kind, subject_id) {
        school_id -> BigInt,
        name -> Text,
        kind -> Text,
        subject_id -> Text,
        seq -> BigInt,
        event_type -> Text,
        attempts -> BigInt,
        cause -> Text,
        due_at -> BigInt,
    }
}

diesel::table! {
    dead_letters (school_id, name, seq) {
        school_id -> BigInt,
        name -> Text,
        seq -> BigInt,
        event_type -> Text,
        kind -> Text,
        subject_id -> Text,
        attempts -> BigInt,
        cause -> Text,
        at -> BigInt,
    }
}
