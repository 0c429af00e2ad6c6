DROP TABLE schedules;
DELETE FROM counts WHERE what = 'schedules';
