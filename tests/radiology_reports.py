"""Radiology reports of our own wording, written in the shapes that the field's reports have.

Each is (name, report, findings and impression as they should be read).
"""

RULE = " " + "_" * 78 + "\n"
FINAL = " " * 33 + "FINAL REPORT\n"

REPORTS = (
    (
        "the usual sections",
        FINAL
        + " EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___F with cough  // pneumonia?\n \n"
        " TECHNIQUE:  Chest PA and lateral\n \n COMPARISON:  ___\n \n FINDINGS: \n \n"
        " Patchy opacity in the right\n lower lobe.  No effusion.\n \n IMPRESSION: \n \n"
        " Right lower lobe pneumonia.\n",
        ("Patchy opacity in the right lower lobe. No effusion.", "Right lower lobe pneumonia."),
    ),
    (
        "impression alone",
        FINAL + " HISTORY:  Fall.\n \n IMPRESSION:  No rib fracture is seen.\n",
        ("", "No rib fracture is seen."),
    ),
    (
        "findings alone",
        FINAL + " INDICATION:  Line placed.\n \n FINDINGS:  The tip lies in the SVC.\n",
        ("The tip lies in the SVC.", ""),
    ),
    (
        "an empty impression",
        FINAL + " FINDINGS:  Lungs are clear.\n \n IMPRESSION:\n",
        ("Lungs are clear.", ""),
    ),
    (
        "a wet read above the final report",
        " WET READ: ___ ___ ___ 9:15 PM\n  Possible opacity.\n" + RULE + FINAL + " FINDINGS:  "
        "Lungs are clear.\n \n IMPRESSION:  No opacity.\n",
        ("Lungs are clear.", "No opacity."),
    ),
    (
        "several wet reads above the final report",
        " WET READ VERSION #1 ___ ___ 1:02 AM\n  Line in the atrium.\n WET READ VERSION #2\n"
        "  Line withdrawn.\n" + RULE + FINAL + " IMPRESSION:  Line in the SVC.\n",
        ("", "Line in the SVC."),
    ),
    (
        "a wet read alone",
        " WET READ: ___ ___ 11:40 PM\n  Left basal atelectasis.  No pneumothorax.\n",
        ("Left basal atelectasis. No pneumothorax.", ""),
    ),
    (
        "an addendum above the final report",
        " " * 33
        + "FINAL ADDENDUM\n ADDENDUM:  Called to the ward.\n"
        + RULE
        + FINAL
        + " FINDINGS:  Heart enlarged.\n \n IMPRESSION:  Cardiomegaly.\n",
        ("Heart enlarged.", "Cardiomegaly."),
    ),
    (
        "an addendum below the impression",
        " FINDINGS:  Clear.\n \n IMPRESSION:  Normal chest.\n \n ADDENDUM\n Compared on ___.\n",
        ("Clear.", "Normal chest."),
    ),
    (
        "numbered impression over several lines",
        " FINDINGS:  See below.\n \n IMPRESSION:\n \n 1. Small left effusion.\n 2. No\n"
        " pneumothorax.\n",
        ("See below.", "1. Small left effusion. 2. No pneumothorax."),
    ),
    (
        "findings and impression in one",
        FINAL + " HISTORY:  Fever.\n \n FINDINGS AND IMPRESSION:  Lingular consolidation.\n",
        ("Lingular consolidation.", "Lingular consolidation."),
    ),
    (
        "findings and impression in one, with a stroke",
        " FINDINGS/IMPRESSION:  Tube in good position.\n",
        ("Tube in good position.", "Tube in good position."),
    ),
    (
        "the examination as the heading of the findings",
        FINAL + " CHEST, PA AND LATERAL:  Lungs are hyperinflated.\n \n IMPRESSION:  Emphysema.\n",
        ("Lungs are hyperinflated.", "Emphysema."),
    ),
    (
        "the examination with the time as the heading",
        FINAL + " AP CHEST, 8:43 A.M., ___:\n \n HISTORY:  Sepsis.\n \n IMPRESSION:  AP chest"
        " compared to ___:\n Worse edema.\n",
        ("", "AP chest compared to ___: Worse edema."),
    ),
    (
        "an empty heading of the examination before the findings",
        " PORTABLE CHEST:\n \n FINDINGS:  Rotated film.\n \n CONCLUSION:  No change.\n",
        ("Rotated film.", "No change."),
    ),
    (
        "findings divided by anatomy",
        " FINDINGS:\n LUNGS:  Clear.\n PLEURA:  No effusion.\n HEART AND MEDIASTINUM:  Normal.\n"
        " BONES:  Old rib fracture.\n IMPRESSION:  No acute disease.\n",
        (
            "LUNGS: Clear. PLEURA: No effusion. HEART AND MEDIASTINUM: Normal. "
            "BONES: Old rib fracture.",
            "No acute disease.",
        ),
    ),
    (
        "a notification after the impression",
        " IMPRESSION:  Large pneumothorax.\n \n NOTIFICATION:  Told to Dr. ___ at 5:30 pm.\n",
        ("", "Large pneumothorax."),
    ),
    (
        "recommendations after the impression",
        " IMPRESSION:  Nodule of 8 mm.\n \n RECOMMENDATION(S):  CT of the chest.\n",
        ("", "Nodule of 8 mm."),
    ),
    (
        "a signature after the impression",
        " IMPRESSION:  Clear lungs.\n \n DICTATED BY:  ___\n SIGNED BY: ___\n",
        ("", "Clear lungs."),
    ),
    (
        "misspelt headings",
        " FINDNGS:  Low volumes.\n \n IMPRESSOIN:  Atelectasis.\n",
        ("Low volumes.", "Atelectasis."),
    ),
    (
        "a heading that lost its first letter",
        " FINDINGS:  Wide mediastinum.\n \n MPRESSION:  CT advised.\n",
        ("Wide mediastinum.", "CT advised."),
    ),
    (
        "headings in lower case",
        "Clinical history: Dyspnea.\nFindings: Cephalization.\nImpression: Mild edema.\n",
        ("Cephalization.", "Mild edema."),
    ),
    (
        "headings without a colon, alone in their lines",
        "INDICATION: Pain\n\nFINDINGS\nNo fracture.\n\nIMPRESSION\nNormal.\n",
        ("No fracture.", "Normal."),
    ),
    (
        "everything in one line",
        "INDICATION: Cough. FINDINGS: The lungs are clear. IMPRESSION: Normal chest.",
        ("The lungs are clear.", "Normal chest."),
    ),
    (
        "two findings sections, the later one counts",
        " FINDINGS:  Preliminary: mass?\n \n COMPARISON:  ___.\n \n FINDINGS:  Nipple shadow.\n"
        " \n IMPRESSION:  No mass.\n",
        ("Nipple shadow.", "No mass."),
    ),
    (
        "two findings sections, the later one empty",
        " FINDINGS:  Nipple shadow.\n \n IMPRESSION:  No mass.\n \n FINDINGS:\n",
        ("Nipple shadow.", "No mass."),
    ),
    (
        "a line with a time of day is no heading",
        " FINDINGS:  Film taken\n AT 5:30 the tube is high.\n \n IMPRESSION:  Advance tube.\n",
        ("Film taken AT 5:30 the tube is high.", "Advance tube."),
    ),
    (
        "Windows line ends",
        " FINDINGS:  Clear\r\n lungs.\r\n \r\n IMPRESSION:  Normal.\r\n",
        ("Clear lungs.", "Normal."),
    ),
    (
        "other words for impression",
        " DESCRIPTION:  Linear scar.\n \n OPINION:  Old disease.\n",
        ("Linear scar.", "Old disease."),
    ),
    (
        "no heading but the indication: the paragraphs after its own",
        FINAL + " INDICATION:  Shortness of breath.\n \n The heart is large.\n \n There is\n"
        " a small right effusion.\n",
        ("The heart is large. There is a small right effusion.", ""),
    ),
    (
        "no heading but the comparison, and a notification at the end",
        FINAL + " COMPARISON:  ___.\n \n Unchanged nodule.\n \n NOTIFICATION:  None needed.\n",
        ("Unchanged nodule.", ""),
    ),
    (
        "no heading at all, below a title",
        FINAL + " PA AND LATERAL CHEST ON ___\n \n Clear lungs.  Normal heart.\n",
        ("Clear lungs. Normal heart.", ""),
    ),
    (
        "no heading and no title",
        " Clear lungs.  Normal heart.\n",
        ("Clear lungs. Normal heart.", ""),
    ),
    (
        "a title and the history alone tell nothing",
        FINAL + " CHEST RADIOGRAPH ON ___\n \n HISTORY:  Cough.\n",
        ("", ""),
    ),
    ("an empty report", FINAL, ("", "")),
)
