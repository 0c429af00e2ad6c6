DROP TABLE ping_keys;
