ALTER TABLE violations DROP COLUMN chart;
ALTER TABLE characteristics DROP COLUMN dispersion;
