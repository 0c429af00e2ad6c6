//! Tokens that were verified a moment ago, so that each report of a worker does not verify the same signature again.
//!
//! A token is found by its digest: the cache holds no credentials. An entry is valid only for the keys that verified the
//! token, and from its verification until it expires: if the key file changes or the clock is set back, the token is
//! verified again. Rejected tokens are not cached, so nobody can fill the cache without valid tokens.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use lru::LruCache;
use sha2::{Digest, Sha256};

use super::Access;
use super::token::KeySet;
use crate::config::{VERIFIED_TOKEN_MAX_BYTES, VERIFIED_TOKENS};

/// See the [module-level documentation](self).
pub(super) struct VerifiedTokens(Mutex<LruCache<[u8; 32], Verified>>);

struct Verified {
    /// Keeps the keys alive, so that no other key set gets their address, which [`Verified::holds`] compares.
    keys: Arc<KeySet>,
    at: DateTime<Utc>,
    access: Access,
}

impl Verified {
    fn holds(&self, keys: &Arc<KeySet>, now: DateTime<Utc>) -> bool {
        let ends = self.access.expires_at;
        Arc::ptr_eq(&self.keys, keys) && self.at <= now && ends.is_some_and(|end| now < end)
    }
}

impl Default for VerifiedTokens {
    fn default() -> VerifiedTokens {
        let capacity = NonZeroUsize::new(VERIFIED_TOKENS).expect("a cache has room");
        VerifiedTokens(Mutex::new(LruCache::new(capacity)))
    }
}

impl VerifiedTokens {
    /// Returns what the token allows: the cached result for these keys, or else what `verify` returns.
    pub(super) fn access<E>(
        &self,
        token: &str,
        keys: &Arc<KeySet>,
        now: DateTime<Utc>,
        verify: impl FnOnce() -> Result<Access, E>,
    ) -> Result<Access, E> {
        if token.len() > VERIFIED_TOKEN_MAX_BYTES {
            return verify();
        }
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        {
            let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let known = tokens.get(&digest).filter(|entry| entry.holds(keys, now));
            if let Some(known) = known {
                return Ok(known.access.clone());
            }
        }
        let access = verify()?;
        let verified = Verified {
            keys: Arc::clone(keys),
            at: now,
            access: access.clone(),
        };
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.put(digest, verified);
        Ok(access)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::auth::{Role, Schools};

    fn access(expires_at: DateTime<Utc>) -> Access {
        Access {
            subject: "worker".into(),
            schools: Schools::All,
            role: Role::Worker,
            channels: None,
            expires_at: Some(expires_at),
            reconnects_until: None,
        }
    }

    /// Returns whether a token had to be verified.
    fn is_verified(
        tokens: &VerifiedTokens,
        token: &str,
        keys: &Arc<KeySet>,
        now: DateTime<Utc>,
        result: Result<Access, ()>,
    ) -> bool {
        let mut verified = false;
        let _ = tokens.access(token, keys, now, || {
            verified = true;
            result
        });
        verified
    }

    #[test]
    fn a_token_is_verified_once_until_it_expires_the_keys_change_or_the_clock_is_set_back() {
        let tokens = VerifiedTokens::default();
        let keys = Arc::new(KeySet(Vec::new()));
        let (now, hour) = (Utc::now(), TimeDelta::hours(1));
        let check = |token: &str, keys: &Arc<KeySet>, now| {
            is_verified(&tokens, token, keys, now, Ok(access(now + hour)))
        };
        assert!(check("a", &keys, now), "the first time");
        assert!(!check("a", &keys, now));
        assert!(!check("a", &keys, now + hour - TimeDelta::milliseconds(1)));
        assert!(check("b", &keys, now), "another token");
        assert!(check("a", &keys, now + hour), "it has expired");
        let earlier = now - TimeDelta::seconds(1);
        assert!(check("a", &keys, earlier), "the clock was set back");
        let other_keys = Arc::new(KeySet(Vec::new()));
        assert!(check("b", &other_keys, now), "other keys are in force");
        assert!(check("b", &keys, now), "and the first ones again");
    }

    #[test]
    fn a_rejected_or_long_token_is_verified_each_time_and_the_number_of_tokens_is_bounded() {
        let tokens = VerifiedTokens::default();
        let keys = Arc::new(KeySet(Vec::new()));
        let now = Utc::now();
        let good = || Ok(access(now + TimeDelta::hours(1)));
        assert!(is_verified(&tokens, "forged", &keys, now, Err(())));
        assert!(is_verified(&tokens, "forged", &keys, now, Err(())));
        let long = "x".repeat(VERIFIED_TOKEN_MAX_BYTES + 1);
        assert!(is_verified(&tokens, &long, &keys, now, good()));
        assert!(is_verified(&tokens, &long, &keys, now, good()));
        for number in 0..=VERIFIED_TOKENS {
            let token = number.to_string();
            assert!(is_verified(&tokens, &token, &keys, now, good()));
        }
        assert_eq!(tokens.0.lock().unwrap().len(), VERIFIED_TOKENS);
        assert!(is_verified(&tokens, "0", &keys, now, good()), "the oldest");
    }
}
