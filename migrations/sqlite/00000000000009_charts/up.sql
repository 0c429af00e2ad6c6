-- JSON: the dispersion chart that is in force (moving ranges, ranges or standard deviations) and its lines.
ALTER TABLE characteristics ADD COLUMN dispersion TEXT;
-- The dispersion chart, if a violation was found on one.
ALTER TABLE violations ADD COLUMN chart TEXT;
