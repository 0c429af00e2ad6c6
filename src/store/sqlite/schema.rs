//! The tables of `migrations/sqlite/`, for Diesel.

diesel::table! {
    meta (key) {
        key -> Text,
        value -> Text,
    }
}

diesel::table! {
    schools (school_id) {
        school_id -> BigInt,
        head -> BigInt,
        floor -> BigInt,
        bytes -> BigInt,
        head_tag -> Nullable<BigInt>,
        floor_tag -> Nullable<BigInt>,
        answer_bytes -> BigInt,
        uptime -> BigInt,
    }
}

diesel::table! {
    school_numbers (number) {
        number -> BigInt,
        school_id -> BigInt,
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
        previous_seq -> Nullable<BigInt>,
        indexed -> Bool,
    }
}

diesel::table! {
    jobs (school_id, job_id) {
        school_id -> BigInt,
        job_id -> Text,
        job_type -> Text,
        status -> Text,
        progress -> Nullable<Double>,
        message -> Text,
        metadata -> Text,
        attempt -> BigInt,
        reporters -> Nullable<Text>,
        eta_at -> Nullable<BigInt>,
        eta_low_at -> Nullable<BigInt>,
        eta_high_at -> Nullable<BigInt>,
        eta_source -> Nullable<Text>,
        stalled -> Bool,
        cancel_requested -> Bool,
        result -> Nullable<Text>,
        error_code -> Nullable<Text>,
        error_message -> Nullable<Text>,
        created_at -> BigInt,
        heard_at -> BigInt,
        heard_uptime -> BigInt,
        started_at -> Nullable<BigInt>,
        finished_at -> Nullable<BigInt>,
        stall_after_secs -> BigInt,
        timeout_secs -> BigInt,
        check_uptime -> Nullable<BigInt>,
        estimator -> Nullable<Text>,
        past -> Nullable<Text>,
        created_seq -> BigInt,
        last_seq -> BigInt,
        last_tag -> Nullable<BigInt>,
        last_at -> BigInt,
    }
}

diesel::table! {
    enrollment_sessions (school_id, session_id) {
        school_id -> BigInt,
        session_id -> Text,
        device_id -> Nullable<Text>,
        student_id -> Nullable<Text>,
        status -> Text,
        progress -> BigInt,
        message -> Text,
        attempt -> Nullable<BigInt>,
        total_attempts -> Nullable<BigInt>,
        quality_score -> Nullable<Double>,
        error_code -> Nullable<Text>,
        created_at -> BigInt,
        heard_at -> BigInt,
        heard_uptime -> BigInt,
        finished_at -> Nullable<BigInt>,
        lease_secs -> BigInt,
        check_uptime -> Nullable<BigInt>,
        created_seq -> BigInt,
        last_seq -> BigInt,
        last_tag -> Nullable<BigInt>,
        last_at -> BigInt,
    }
}

diesel::table! {
    devices (school_id, device_id) {
        school_id -> BigInt,
        device_id -> Text,
        name -> Nullable<Text>,
        status -> Text,
        last_seen -> Nullable<BigInt>,
        lease_secs -> BigInt,
        lease_uptime -> BigInt,
        flapping -> Bool,
        changes -> Text,
        info -> Text,
        status_seq -> BigInt,
        status_at -> BigInt,
        info_seq -> Nullable<BigInt>,
        info_at -> Nullable<BigInt>,
        created_at -> BigInt,
        check_uptime -> Nullable<BigInt>,
        created_seq -> BigInt,
        last_seq -> BigInt,
        last_tag -> Nullable<BigInt>,
        last_at -> BigInt,
    }
}

diesel::table! {
    characteristics (school_id, characteristic_id) {
        school_id -> BigInt,
        characteristic_id -> Text,
        name -> Nullable<Text>,
        unit -> Nullable<Text>,
        status -> Text,
        subgroup_size -> BigInt,
        rules -> Text,
        center_line -> Nullable<Double>,
        ucl -> Nullable<Double>,
        lcl -> Nullable<Double>,
        limits_method -> Nullable<Text>,
        limits_samples -> BigInt,
        limits_version -> BigInt,
        baseline -> Nullable<Text>,
        recent -> Text,
        runs -> Text,
        publisher_in_control -> Nullable<Bool>,
        sample_count -> BigInt,
        violation_count -> BigInt,
        sample_id -> Nullable<Text>,
        sample_seq -> Nullable<BigInt>,
        sample_at -> Nullable<BigInt>,
        sample_status -> Nullable<Text>,
        sample_fields -> Nullable<Text>,
        limits_seq -> BigInt,
        limits_at -> BigInt,
        created_at -> BigInt,
        created_seq -> BigInt,
        last_seq -> BigInt,
        last_tag -> Nullable<BigInt>,
        last_at -> BigInt,
        dispersion -> Nullable<Text>,
    }
}

diesel::table! {
    violations (school_id, characteristic_id, number) {
        school_id -> BigInt,
        characteristic_id -> Text,
        number -> BigInt,
        own_id -> Nullable<Text>,
        sample_id -> Nullable<Text>,
        rule_id -> BigInt,
        rule_name -> Text,
        severity -> Text,
        at -> BigInt,
        seq -> BigInt,
        ack_user -> Nullable<Text>,
        ack_reason -> Nullable<Text>,
        ack_at -> Nullable<BigInt>,
        chart -> Nullable<Text>,
    }
}

diesel::table! {
    schedules (school_id, schedule_id) {
        school_id -> BigInt,
        schedule_id -> Text,
        status -> Text,
        cron -> Nullable<Text>,
        time_zone -> Nullable<Text>,
        state -> Text,
        created_at -> BigInt,
        finished_at -> Nullable<BigInt>,
        check_uptime -> Nullable<BigInt>,
        created_seq -> BigInt,
        last_seq -> BigInt,
        last_tag -> Nullable<BigInt>,
        last_at -> BigInt,
    }
}

diesel::table! {
    notifiers (name) {
        name -> Text,
        not_before -> Nullable<BigInt>,
    }
}

diesel::table! {
    notifier_set_aside (name, school_id, kind, subject_id) {
        name -> Text,
        school_id -> BigInt,
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
    notifier_cursors (name, school_id) {
        name -> Text,
        school_id -> BigInt,
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
    dead_letters (name, school_id, seq) {
        name -> Text,
        school_id -> BigInt,
        seq -> BigInt,
        event_type -> Text,
        kind -> Text,
        subject_id -> Text,
        attempts -> BigInt,
        cause -> Text,
        at -> BigInt,
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
    }
}

diesel::table! {
    idempotency_answers (school_id, key) {
        school_id -> BigInt,
        key -> Text,
        seq -> BigInt,
        snapshot -> Bool,
        name -> Text,
        status -> Text,
        at -> BigInt,
        fields -> Text,
        created_at -> BigInt,
        tag -> Nullable<BigInt>,
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
    job_endings (school_id, hour, status) {
        school_id -> BigInt,
        hour -> BigInt,
        status -> Text,
        count -> BigInt,
    }
}
